"""Exit codes and streams of the installed command, row by row, as a user or a pipeline sees them.

Every run is a process of its own. Loading torch takes each of them seconds, so that most are forks of one which has
loaded it and then run the command's own file, with streams, folder and variables of their own; ``cold`` starts one from
nothing.
"""

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

COMMAND = Path(sys.executable).with_name("vaeaudit")
LONG = 60  # seconds after which a run counts as hanging

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a loaded process")

# Answers each request, a line of JSON, with the number of a fork that becomes the command, then with how it ended.
LOADED = """
import json, os, resource, runpy, signal, sys
import vaeaudit.artifacts, vaeaudit.cli.forms, vaeaudit.compare, vaeaudit.gate, vaeaudit.report.markdown
command = sys.argv[1]
sys.path.insert(0, os.path.dirname(command))
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(asked["long"])
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
    for number, name in enumerate(asked["streams"]):
        os.dup2(os.open(name, flags), number)
    if asked["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest"], asked["largest"]))
    sys.argv = [command, *asked["arguments"]]
    runpy.run_path(command, run_name="__main__")
    raise AssertionError("the command did not exit")
"""
