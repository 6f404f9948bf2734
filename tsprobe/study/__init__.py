"""The one pipeline, its spec and its result."""

from tsprobe.study.result import Study
from tsprobe.study.run import run_study
from tsprobe.study.spec import StudySpec, make_spec, read_spec

__all__ = ["Study", "StudySpec", "make_spec", "read_spec", "run_study"]
