"""What a sweep of tunings is asked to do: an alignment, and which of its settings are searched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tsprobe.alignment.spec import AlignSpec
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.settings import Frozen, validated
from tsprobe.sweep.search import SearchSpec

# What is the same for all trials: what is asked, of whom, and what comes out the same however it is set.
FIXED = AlignSpec.LOOSE | {"encoder", "recipe", "lift", "labelled", "seed"}
VARIES = tuple(name for name in AlignSpec.model_fields if name not in FIXED)
NUMBERS = {name: field.annotation for name, field in AlignSpec.model_fields.items() if field.annotation in (int, float)}
LOGARITHMIC = frozenset({"rate", "head_rate", "decay", "steps", "batch", "length", "rank", "clip"})


class Range(Frozen):
    """Numbers from `low` to `high`, both included; whole ones for settings that are counts.

    Drawn evenly, or on a logarithmic scale: where `log` does not say which, rates and counts of steps are logarithmic.
    """

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale has no {self.low:g}; give a low above 0, or log: false")
        return self

    def logarithmic(self, name: str) -> bool:
        return self.low > 0 and name in LOGARITHMIC if self.log is None else self.log


class TuningSweepSpec(SearchSpec):
    """An alignment, the values of its settings that are tried, and how they are searched.

    The objective is what a tuning brings to the families that the alignment lifts, on inner folds; `cost: price` adds
    what it costs the family that loses most. `price_at_most` is what the chosen trial may cost it. The chosen one alone
    is then tuned with the controls and seeds of `align`, and tested.
    """

    LOOSE: ClassVar[frozenset[str]] = SearchSpec.LOOSE | {"price_at_most"}

    align: AlignSpec
    space: dict[str, tuple[Any, ...] | Range] = Field(min_length=1)
    trials: int = Field(20, ge=1)
    cost: Literal["price"] | None = None
    price_at_most: float | None = Field(None, allow_inf_nan=False)

    @field_validator("space", mode="before")
    @classmethod
    def _may_vary(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            raise ValueError("name settings of the alignment, each with a list of values, or low and high")
        for name, values in space.items():
            if name in FIXED:
                raise ValueError(f"{name} is the same for all trials: set it in align")
            if name not in VARIES:
                raise ValueError(str(UnknownNameError("setting of an alignment", str(name), VARIES)))
            if isinstance(values, dict) and name not in NUMBERS:
                raise ValueError(f"{name} is no number, and has no low and high: give a list of values")
            if not isinstance(values, dict | list | tuple | Range):
                raise ValueError(f"{name} needs a list of values{', or low and high' if name in NUMBERS else ''}")
            if isinstance(values, list | tuple) and not values:
                raise ValueError(f"{name} has no values")
        return {name: _read(name, values) for name, values in space.items()}

    @model_validator(mode="after")
    def _makes_alignments(self) -> TuningSweepSpec:
        """Each value makes an alignment, the other settings being at their first."""
        for name, value in self._alone():
            try:
                self.aligned(self._first | {name: value})
            except SpecError as error:
                raise ValueError(f"space.{name} cannot hold {value!r}: {error}") from error
        for name, values in self.space.items():
            if isinstance(values, Range):
                if NUMBERS[name] is int and not (values.low.is_integer() and values.high.is_integer()):
                    raise ValueError(f"space.{name} goes from one whole number to another")
            elif len({label(value) for value in values}) < len(values):
                raise ValueError(f"space.{name} names a value twice")
        if all(isinstance(values, tuple) and len(values) == 1 for values in self.space.values()):
            raise ValueError("the space has one setting alone, so there is nothing to search; take tsprobe align")
        if self.sampler == "grid" and not self.finite:
            raise ValueError("a grid needs lists of values; low and high hold more of them than can be tried")
        return self

    @property
    def finite(self) -> bool:
        return all(isinstance(values, tuple) for values in self.space.values())

    @property
    def placed(self) -> AlignSpec:
        """The alignment on the device of the sweep, where that names one."""
        return self.align if self.device == "auto" else self.align.model_copy(update={"device": self.device})

    def aligned(self, setting: dict[str, Any]) -> AlignSpec:
        """The alignment of a trial. Raises `SpecError` for settings that make none together."""
        return validated(AlignSpec, self.placed.model_dump() | setting)

    def variants(self) -> Iterator[AlignSpec]:
        """Alignments in which each value occurs, or each end of a range, the other settings being at their first."""
        for name, value in self._alone():
            yield self.aligned(self._first | {name: value})

    @property
    def _first(self) -> dict[str, Any]:
        return {name: _ends(values)[0] for name, values in self.space.items()}

    def _alone(self) -> Iterator[tuple[str, Any]]:
        for name, values in self.space.items():
            for value in _ends(values):
                yield name, value

    def same_run(self, other: dict[str, Any]) -> bool:
        """What an alignment is done with after the choice may change; the study that scores trials may not."""
        loose = AlignSpec.LOOSE - {"study"}
        if not isinstance(other.get("align"), dict) or "space" not in other:
            return False
        kept = {name: value for name, value in other["align"].items() if name not in loose}
        mine = {name: value for name, value in self.dump()["align"].items() if name in loose}
        return super().same_run(other | {"align": mine | kept})


def label(value: Any) -> Any:
    """A value as Optuna keeps it: several layers or names are one text."""
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value)) or "none"
    return value


def _ends(values: tuple[Any, ...] | Range) -> tuple[Any, ...]:
    if isinstance(values, Range):
        return tuple(int(end) if end.is_integer() else end for end in (values.low, values.high))
    return values


def _read(name: str, values: Any) -> Any:
    """Numbers that YAML takes for text, such as 1e-4, are numbers."""
    if isinstance(values, dict):
        try:
            return validated(Range, values)
        except SpecError as error:
            raise ValueError(f"{name}: {error}") from error
    if name not in NUMBERS or isinstance(values, Range):
        return values
    return tuple(_number(value) for value in values)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # refused with the others that make no alignment
