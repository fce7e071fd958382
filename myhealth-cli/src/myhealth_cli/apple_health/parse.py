"""Read an Apple Health export as a stream of samples, in memory that does not grow with the file.

    with Export(path) as export:
        for sample in export.samples(): ...
        export.report.unknown_types

Safe against hostile files: no DTD reaches the parser (see `sanitize`), nesting and the size of one tag are
bounded, and nothing outside the file is ever opened.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from xml.parsers import expat

from myhealth_cli.apple_health import records
from myhealth_cli.apple_health.sanitize import Sanitizer
from myhealth_cli.apple_health.source import Source
from myhealth_cli.errors import ExportDamagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from myhealth_cli.apple_health.samples import Sample

_MAX_DEPTH: Final = 32
_MAX_TAG: Final = 4 << 20
_RECENT: Final = 128 << 10
_MAX_KEYS: Final = 1000
_MAX_NAME: Final = 100
_ROOT: Final = "HealthData"
_TAG: Final = re.compile(rb"</?([^\s/<>=\"']{1,80})")


@dataclass
class Report:
    """What was met on the way: samples per kind or metric, what was left out and why."""

    samples: Counter[str] = field(default_factory=Counter[str])
    unknown_types: Counter[str] = field(default_factory=Counter[str])
    skipped: Counter[str] = field(default_factory=Counter[str])
    export_date: str | None = None


class Export:
    """An opened export; a context manager. Raises ExportUnreadableError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._source = Source(path)
        self.report = Report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._source.__exit__(kind, error, traceback)

    @property
    def name(self) -> str:
        """The file, or the zip's member, that is read."""
        return self._source.name

    @property
    def total(self) -> int:
        """The bytes there are to read, in the unit of `position`."""
        return self._source.total

    @property
    def position(self) -> int:
        """The bytes read so far."""
        return self._source.position

    def samples(self) -> Iterator[Sample]:
        """Give every sample, in the file's order, once.

        Raises ExportDamagedError where the file breaks off or is malformed, after all samples before it.
        """
        parser = _Parser(self.report)
        for chunk in self._source.chunks():
            failure = parser.feed(chunk)
            yield from parser.take()
            if failure is not None:
                raise failure
        failure = parser.close(self._source.problem)
        yield from parser.take()
        if failure is not None:
            raise failure


class _Parser:
    """The expat driver: elements in, samples out."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sanitizer = Sanitizer()
        self._expat = expat.ParserCreate()
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.StartDoctypeDeclHandler = self._refuse_doctype
        self._stack: list[str] = []
        self._ordinals: Counter[str] = Counter()
        self._samples: list[Sample] = []
        self._workout: records.OpenWorkout | None = None
        self._fed = 0
        self._recent = b""  # the last bytes fed, to name the element an error is in
        self._finished = False

    def take(self) -> list[Sample]:
        """Give the samples completed since the last call."""
        taken, self._samples = self._samples, []
        return taken

    def feed(self, chunk: bytes) -> ExportDamagedError | None:
        """Parse `chunk`; give the error that ends the reading, if any."""
        try:
            self._parse(self._sanitizer.feed(chunk))
        except expat.ExpatError as error:
            if self._finished:  # junk after the root element: everything was read
                return None
            return self._damage(expat.errors.messages[error.code], self._expat.ErrorByteIndex)
        except ExportDamagedError as error:
            return error
        return None

    def close(self, problem: str) -> ExportDamagedError | None:
        """Parse what is left; `problem` says why the bytes ended early, if they did."""
        try:
            self._parse(self._sanitizer.close())
            self._expat.Parse(b"", True)
        except expat.ExpatError as error:
            if self._finished:
                return None
            reason = problem or f"the file ends here ({expat.errors.messages[error.code]})"
            return self._damage(reason, self._fed)
        except ExportDamagedError as error:
            return error
        return self._damage(problem, self._fed) if problem and not self._finished else None

    def _parse(self, data: bytes) -> None:
        self._recent = (self._recent + data)[-_RECENT:]
        self._fed += len(data)
        self._expat.Parse(data, False)
        if self._fed - self._expat.CurrentByteIndex > _MAX_TAG:
            raise self._damage("one tag is longer than 4 MiB", self._expat.CurrentByteIndex)

    def _damage(self, reason: str, offset: int) -> ExportDamagedError:
        return ExportDamagedError(
            reason,
            offset=offset,
            element=self._element_at(offset),
            hint="What came before is kept. Export again on the iPhone, or copy the file again, in full.",
        )

    def _element_at(self, offset: int) -> str:
        """Name the tag that `offset` is in, else the innermost open element."""
        before = self._recent[: max(0, len(self._recent) - (self._fed - offset)) + 1]
        opened = before.rfind(b"<")
        if opened > before.rfind(b">") and (tag := _TAG.match(self._recent, opened)):
            name = tag[1].decode("utf-8", "replace")
            return f"<{name}> no. {self._ordinals[name] + (self._recent[opened + 1 : opened + 2] != b'/')}"
        if not self._stack:
            return "the document's start" if not self._finished else "the document's end"
        return f"<{self._stack[-1]}> no. {self._ordinals[self._stack[-1]]}"

    def _refuse_doctype(self, *_: object) -> None:
        raise self._damage("a DOCTYPE where none is expected", self._expat.CurrentByteIndex)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        stack = self._stack
        _count(self._ordinals, name)
        if len(stack) >= _MAX_DEPTH:
            raise self._damage(f"elements nest deeper than {_MAX_DEPTH}", self._expat.CurrentByteIndex)
        if len(stack) == 1:
            self._top_level(name, attributes)
        elif not stack and name != _ROOT:
            raise self._damage(f"the root is not <{_ROOT}>", self._expat.CurrentByteIndex)
        elif self._workout is not None and len(stack) == 2:
            self._workout.child(name, attributes)
        stack.append(name)

    def _top_level(self, name: str, attributes: dict[str, str]) -> None:
        # A Record inside a Correlation is repeated at the top level, where it is read.
        if name == "Record":
            self._add(attributes.get("type", ""), attributes, records.record)
        elif name == "Workout":
            self._workout = records.OpenWorkout(attributes)
        elif name == "ActivitySummary":
            self._add(name, attributes, records.activity_summary)
        elif name == "ExportDate":
            self._report.export_date = attributes.get("value")
        elif name != "Me":
            _count(self._report.unknown_types, name)

    def _end(self, name: str) -> None:
        self._stack.pop()
        if not self._stack:
            self._finished = True
        elif self._workout is not None and len(self._stack) == 1:
            workout, self._workout = self._workout, None
            self._add(name, workout.attributes, lambda _: workout.close())

    def _add(
        self, kind: str, attributes: dict[str, str], build: Callable[[dict[str, str]], Sample | None]
    ) -> None:
        try:
            sample = build(attributes)
        except records.RecordError as error:
            _count(self._report.skipped, f"{kind[:_MAX_NAME]}: {error}")
            return
        if sample is None:
            _count(self._report.unknown_types, kind[:_MAX_NAME])
            return
        self._samples.append(sample)
        self._report.samples[sample.label] += 1


def _count(counter: Counter[str], key: str) -> None:
    # A file cannot make the report grow without end by inventing names.
    counter[key if key in counter or len(counter) < _MAX_KEYS else "(others)"] += 1
