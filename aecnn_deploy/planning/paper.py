"""The paper's own Table I, to stand beside what was measured here."""

from importlib import resources

import msgspec


class PaperRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: accuracies and their ± in percent, entropy in bits a float32 value, milliseconds of entropy coding."""

    split: int
    shape: tuple[int, int, int]  # C, H, W of the tensor
    ratio: int
    kept_channels: int
    bottlenetpp: tuple[float, float]
    ca_pruned: tuple[float, float]
    aecnn: tuple[float, float]
    entropy_bits: tuple[float, float]
    encode_ms: float
    decode_ms: float

    @property
    def estimated_bytes(self) -> float:
        """C'·H·W values at the stated entropy: the paper sends no bytes, and counts neither table nor framing."""
        return self.kept_channels * self.shape[1] * self.shape[2] * self.entropy_bits[0] / 8


class PaperTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table, where it is from, and the accuracy of the unsplit network (percent and its ±)."""

    source: str
    identifier: str
    backbone: str
    measured_on: str
    correction: str
    unsplit: tuple[float, float]
    rows: tuple[PaperRow, ...]

    def row(self, split: int | None, ratio: int | None) -> PaperRow | None:
        """The row of a split point and ratio; None: the paper has none."""
        return next((row for row in self.rows if (row.split, row.ratio) == (split, ratio)), None)

    def shape(self, split: int | None) -> tuple[int, int, int] | None:
        """C, H, W at a split point; None: the paper did not split there."""
        return next((row.shape for row in self.rows if row.split == split), None)


def paper_table() -> PaperTable:
    """The package's copy of Table I."""
    source = resources.files("aecnn_deploy.planning").joinpath("paper_table1.json")
    return msgspec.json.decode(source.read_bytes(), type=PaperTable)
