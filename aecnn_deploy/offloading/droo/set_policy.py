"""A policy for any number of devices and any weights: each device is a node, messages are sums over the other nodes.

Round 0 sends messages along edges directed by h√w: a device learns what would offload before it and what would compute
after it. Each later round sends them between all pairs, weighted by the last round's offloading probabilities. A
network of two hidden layers, the same for every device, turns a device's own terms and the sums that reached it into a
score, a logit of offloading. Nothing depends on the devices' order or number.

numpy and torch run the same code: the namespace is an argument.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.droo.physics import Floats, local_terms, snr_terms
from aecnn_deploy.offloading.droo.rules import order_preserving

FORMAT: Final = "aecnn-deploy droo set policy 1"
FEATURES: Final = 7
# Three seeds of one training, on generated samples alone: python -m benchmarks.droo_table --train-shipped
SHIPPED: Final = tuple(Path(__file__).with_name(f"set_policy_{seed}.npz") for seed in (1, 2, 3))
_MOST_BYTES: Final = 16 << 20
_MOST_ROUNDS, _MOST_HIDDEN = 16, 512
_LAYERS: Final = ("in", "mid", "out")


@dataclass(frozen=True)
class SetPolicy:
    """Parameters of each round and layer by name, float64, and how they came about."""

    rounds: int
    hidden: int
    parameters: Mapping[str, Floats]
    training: Mapping[str, Any]  # settings, critic evaluations, seed: told, not used

    def scores(self, gains: Floats, weights: Floats) -> Floats:
        """A logit of offloading for each device, (S, N), of ``gains`` (S, N) and ``weights`` (N,) or (S, N)."""
        last: Floats = round_scores(np, self.parameters, self.rounds, node_terms(gains, weights))[-1]
        return last

    def candidates(self, gains: Floats, weights: Floats, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Order-preserving modes of the scores, (S, count, N); the first is the actor's own."""
        return order_preserving(self.scores(gains, weights), count)


def shapes(rounds: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The parameters' names and shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for number in range(rounds):
        inputs = FEATURES + (number > 0)
        for layer, size in zip(_LAYERS, ((inputs, hidden), (hidden, hidden), (hidden, 1)), strict=True):
            found[f"{number}.{layer}.weight"] = size
            found[f"{number}.{layer}.bias"] = size[1:]
    return found


def node_terms(gains: Floats, weights: Floats) -> dict[str, Floats]:
    """What a node knows and sends, each (S, N), and the edges of round 0 and of the others, (S, N, N) and (N, N).

    Weights count by their ratios: they are divided by their geometric mean.
    """
    spread = np.broadcast_to(weights, gains.shape)
    relative = spread / np.exp(np.log(spread).mean(-1, keepdims=True))
    strength = gains * np.sqrt(relative)
    row, column = strength[..., :, None], strength[..., None, :]
    others = 1.0 - np.eye(gains.shape[-1])
    return {
        "weight": relative,
        "local": local_terms(gains) * relative,
        "snr": snr_terms(gains),
        "before": ((column > row) + 0.5 * (column == row)) * others,  # equals stand half before each other
        "others": others,
    }


def round_scores(xp: Any, parameters: Mapping[str, Any], rounds: int, terms: Mapping[str, Any]) -> list[Any]:
    """Scores after each round, arrays of the namespace ``xp`` (numpy or torch) of the shape (S, N)."""
    weight, local, snr = terms["weight"], terms["local"], terms["snr"]
    weighted = weight * snr
    before, others = terms["before"], terms["others"]
    own = [xp.log(snr) / 3 + 1, xp.log(weight) * 2]
    scores: list[Any] = []
    for number in range(rounds):
        if number == 0:
            after = others - before
            sent = [(before * each[..., None, :]).sum(-1) for each in (snr, weighted)]
            kept = (after * local[..., None, :]).sum(-1)
        else:
            share = 1 / (1 + xp.exp(-xp.clip(scores[-1], -30.0, 30.0)))
            sent = [(share * each) @ others for each in (snr, weighted)]
            kept = ((1 - share) * local) @ others
        all_snr, all_local = sent[0] + snr, kept + local
        features = [
            *own,
            xp.log(all_snr) / 3 + 1,
            xp.log(all_local) + 2,
            2 * snr / all_snr - 1,
            2 * local / all_local - 1,
            2 * xp.log((sent[1] + weighted) / all_snr),
        ]
        if number:
            features.append(xp.tanh(scores[-1] / 4))
        x = xp.stack(features, -1)
        for layer in _LAYERS:
            x = x @ parameters[f"{number}.{layer}.weight"] + parameters[f"{number}.{layer}.bias"]
            if layer != "out":
                x = x * (x > 0)
        scores.append(x[..., 0] + (scores[-1] if number else 0))
    return scores


def write_policy(path: Path, policy: SetPolicy) -> None:
    """Write ``policy`` as an .npz file of float32 arrays. Raises PolicyError: it cannot be written."""
    about = {"format": FORMAT, "rounds": policy.rounds, "hidden": policy.hidden, "training": dict(policy.training)}
    arrays = {name: np.asarray(values, np.float32) for name, values in policy.parameters.items()}
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    except OSError as exc:
        raise PolicyError(f"cannot write the policy to {path}: {exc}") from exc


def read_policy(path: Path) -> SetPolicy:
    """The policy in ``path``. Raises PolicyError: absent, damaged, of another format or shape."""
    remedy = (
        "train one with 'python -m benchmarks.droo_table --train FILE.npz', or leave the policy out for the shipped one"
    )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PolicyError(f"{path} has more than {_MOST_BYTES} bytes, too many for a DROO set policy; {remedy}")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            declared = sum(entry.file_size for entry in archive.zip.infolist())
            if declared > _MOST_BYTES:
                raise PolicyError(f"{path} unpacks to {declared} bytes, over the limit of {_MOST_BYTES}; {remedy}")
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about")))
        rounds, hidden = about["rounds"], about["hidden"]
        known = about["format"] == FORMAT and isinstance(about["training"], dict)
    except PolicyError:
        raise
    except OSError as exc:
        raise PolicyError(f"cannot read the policy {path}: {exc}; {remedy}") from exc
    except Exception as exc:  # a damaged zip raises what its parser stumbled on
        raise PolicyError(f"{path} is no DROO set policy ({type(exc).__name__}: {exc}); {remedy}") from exc
    if not known or not (isinstance(rounds, int) and isinstance(hidden, int)):
        raise PolicyError(f"{path} is no {FORMAT!r} file; {remedy}")
    if not (1 <= rounds <= _MOST_ROUNDS and 1 <= hidden <= _MOST_HIDDEN):
        raise PolicyError(
            f"{path}: {rounds} rounds of {hidden} units; at most {_MOST_ROUNDS} of {_MOST_HIDDEN}; {remedy}"
        )
    wanted = shapes(rounds, hidden)
    if {name: values.shape for name, values in arrays.items()} != wanted:
        raise PolicyError(f"{path}: its arrays are not those of {rounds} rounds with {hidden} units each; {remedy}")
    parameters = {name: values.astype(np.float64) for name, values in arrays.items() if values.dtype.kind == "f"}
    if len(parameters) != len(wanted) or not all(np.isfinite(values).all() for values in parameters.values()):
        raise PolicyError(f"{path}: a parameter is not finite; {remedy}")
    return SetPolicy(rounds, hidden, parameters, about["training"])
