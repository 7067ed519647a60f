"""What every method has in common: its entry in ``METHODS``, its data, what it gives back.

No torch at import, so that ``list`` and ``--help`` answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from papers_shared.quantization import QuantizedWeight

Domain = Literal["language", "vision"]
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """A progress function that shows nothing."""


@dataclass
class Data:
    """What a method may look at.

    Attributes:
        batches: token ids (B, T), or normalised pictures (B, 3, H, W).
        labels: class ids (B,) of each batch of pictures.
        tokenizer: of a language model, for methods that generate text.
        progress: called as ``progress(done, total, what)``.
    """

    batches: Sequence[Tensor] = ()
    labels: Sequence[Tensor] = ()
    tokenizer: Any = None
    progress: Progress = silent

    def needed(self, what: str) -> Sequence[Tensor]:
        """The batches.

        Raises:
            ValueError: there are none; ``what`` says what they are needed for.
        """
        if not self.batches:
            raise ValueError(f"{what} needs calibration data; give batches")
        return self.batches


@dataclass
class Outcome:
    """What a method leaves.

    Attributes:
        model: the compressed model (the given one, changed, or a new one).
        matrix_bytes: bytes, by the report's rule, of each weight that is not stored as dense 16
            bits: name of the parameter -> bytes.
        quantized: module name -> codes, where they can be exported.
        notes: remarks for the report, such as why nothing is saved on this device.
        details: the method's own report.
    """

    model: nn.Module
    matrix_bytes: Mapping[str, float] = field(default_factory=dict)
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Any = None


@dataclass
class Report:
    """What one method, or several in turn, did to a model.

    Attributes:
        methods: names, in the order applied.
        options: of each method.
        parameters: after compression; ``nonzero`` of them are not 0.
        parameters_before: of the model as given.
        bytes: by the rule of the survey's sheet: 16 bits a weight; b-bit codes with a 16-bit scale
            and a b-bit zero a row or group; a mask bit and the kept values; N:M values and places.
        bytes_before: of the model as given, 16 bits a weight.
        seconds: of each method, by the clock.
        cpu_seconds: of each method, all threads of the process; other programs do not count.
        notes: of all methods.
        quantized: module name -> codes, for export.
        details: the methods' own reports.
    """

    methods: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    nonzero: int = 0
    parameters_before: int = 0
    bytes: float = 0.0
    bytes_before: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict, repr=False)
    details: list[Any] = field(default_factory=list, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The figures, without tensors."""
        names = (
            *("methods", "options", "parameters", "nonzero", "parameters_before"),
            *("bytes", "bytes_before", "seconds", "cpu_seconds", "notes"),
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Method:
    """An entry of ``METHODS``.

    Attributes:
        name: what ``--method`` takes.
        title: one line.
        leaves: the taxonomy's leaves that it stands for (keys of ``LEAVES``).
        domains: what it works on.
        run: ``module:function`` within this package, called as
            ``function(model, data, **options) -> Outcome``; imported when it is first called.
        options: name -> default of every option.
        data: whether it needs calibration data.
        gradients: whether it computes gradients.
        compare: whether ``compare`` runs it (methods that train from scratch are left out).
        source: paper.
    """

    name: str
    title: str
    leaves: tuple[str, ...]
    domains: tuple[Domain, ...]
    run: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: bool = True
    gradients: bool = False
    compare: bool = True
    source: str = ""

    def __call__(self, model: nn.Module, data: Data, **options: Any) -> Outcome:
        """Compress a model.

        Raises:
            ValueError: an option that the method does not have, or data that it needs.
        """
        if unknown := sorted(set(options) - set(self.options)):
            raise ValueError(
                f"{self.name} has no option {unknown[0]!r}; it has "
                f"{', '.join(self.options) or 'none'}"
            )
        if self.data:
            data.needed(self.name)
        module, _, function = self.run.partition(":")
        run = getattr(import_module(f"transformer_compression.{module}"), function)
        return run(model, data, **{**self.options, **options})
