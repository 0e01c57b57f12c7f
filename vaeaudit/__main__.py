"""``python -m vaeaudit``."""

from vaeaudit.cli.app import main

main()
