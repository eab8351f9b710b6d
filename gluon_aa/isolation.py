"""Calls in a process of their own: each has its own number format, threads and memory, and may crash or hang alone."""
import ctypes
import importlib
import json
import signal
import subprocess
import sys
from typing import Any, Dict, Optional

from gluon_aa import compat
from gluon_aa.errors import FailedError, reason

_CHILD = 'from gluon_aa.isolation import child; child()'
_MARK = 'ANSWER'
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def call(function: str, arguments: Dict[str, Any], time_limit: float,
         environment: Optional[Dict[str, str]] = None) -> Any:
    """What `function` returns for `arguments`, found in another process.

    Args:
        function: 'package.module:name'; it imports MXNet itself, after it has set what must be set before.
        arguments: by keyword, of JSON's types, as is what the function returns.
        time_limit: in seconds.
        environment: variables for that process beside the user's own.

    Raises:
        FailedError: the function raised an error of ours or of MXNet's, its process ended badly, or it took too long.
    """
    # the same modules as here, wherever they were found
    code = f'import sys; sys.path[:] = {sys.path!r}; {_CHILD}'
    asked = json.dumps({'function': function, 'arguments': arguments})
    try:
        done = subprocess.run([sys.executable, '-c', code], input=asked, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=time_limit, check=False,
                              env={**compat.users_environment(), **(environment or {})})
    except subprocess.TimeoutExpired:
        raise FailedError(f'not done after {time_limit:g} s') from None
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            answer = json.loads(line[len(_MARK):])
            if 'error' in answer:
                raise FailedError(answer['error'])
            return answer['value']
    last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
    raise FailedError(f'its process ended with code {done.returncode}: {last}')


def child() -> None:
    """Do what standard input asks for and print the answer: the other process's end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with its parent, however that ends
    asked = json.load(sys.stdin)
    module, name = asked['function'].split(':')
    try:
        answer = {'value': getattr(importlib.import_module(module), name)(**asked['arguments'])}
    except (ValueError, RuntimeError) as error:  # ours, and MXNet's
        answer = {'error': reason(error)}
    print(_MARK + json.dumps(answer), flush=True)
