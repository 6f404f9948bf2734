"""Telling the user how far a study is: bars with the time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`with stage(text, total) as advance:` and then `advance(steps)`."""


@contextmanager
def silent(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """No output at all."""
    del text, total
    yield lambda steps: None


@contextmanager
def bars() -> Iterator[Stage]:
    """Rich bars on standard error; finished ones disappear. Silent where standard error is no terminal."""
    if find_spec("rich") is None:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        @contextmanager
        def stage(text: str, total: int) -> Iterator[Callable[[int], None]]:
            task = progress.add_task(text.replace("[", r"\["), total=total)
            try:
                yield lambda steps: progress.advance(task, steps)
            finally:
                progress.remove_task(task)

        yield stage
