"""Processes of test files, forked from a server that has imported everything once, which takes seconds."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import quadscape

CONTEXT = multiprocessing.get_context("forkserver")
# With what torch imports only when export is first asked for.
TORCH = ("torch", "torch.export._trace")


def start_server(*modules: str) -> None:
    """Starts the server, which imports these modules, in place of the one that another test file has started."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    folders = [str(Path(__file__).parent), str(Path(quadscape.__file__).parents[1])]
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONWARNINGS"] = "ignore"  # of semaphores that killed workers leave behind
    try:
        CONTEXT.set_forkserver_preload(list(modules))
        assert call(_imported) >= set(modules)  # the server says nothing of a module that it does not find
    finally:
        os.environ.clear()
        os.environ.update(before)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_send, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def _imported() -> set[str]:
    return set(sys.modules)
