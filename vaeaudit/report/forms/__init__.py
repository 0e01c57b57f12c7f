"""The forms of a report: Markdown, HTML, JUnit, GitHub, model card."""
