"""The actor: a graph network over devices and (server, option) nodes, whose edges are the paths of offloading.

Each round turns the scores so far into shares, the chance that a device takes a path, and adds up what these shares
would ask of each access point and each server. The next round scores every path with that demand in sight: what a
device had better do depends on what the others are about to do. All weights are shared by devices, servers and
options, so one network fits any number of each.
"""

import torch
from torch import Tensor, nn

from aecnn_deploy.offloading.agent.features import LOCAL_FEATURES, PATH_FEATURES, SERVER_FEATURES

_DEMANDS = 3  # of a server: air, time, tasks


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


class GraphActor(nn.Module):
    """Scores [B, N, 1 + S·V] from path [B, N, S, V, F], local [B, N, F'], server [B, S, F''], active [B, N]."""

    def __init__(self, width: int = 32, rounds: int = 3) -> None:
        super().__init__()
        self.rounds = rounds
        self.path = _mlp(PATH_FEATURES + SERVER_FEATURES, width, width)
        self.local = _mlp(LOCAL_FEATURES, width, width)
        self.meet = nn.Linear(width, width)  # a device, of all of its paths
        # Two layers to each score; of the first, what does not change from round to round is computed once.
        self.path_fixed = nn.Linear(3 * width, width)
        self.path_demand = nn.Linear(2 * _DEMANDS, width, bias=False)
        self.path_score = nn.Linear(width, 1)
        self.local_fixed = nn.Linear(2 * width, width)
        self.local_demand = nn.Linear(_DEMANDS, width, bias=False)
        self.local_score = nn.Linear(width, 1)
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor([1.0, 1.0, 0.25]), persistent=False)
        self.node = nn.Linear(2 * width, width)  # a (server, option) node, of the devices that may take it

    def forward(self, path: Tensor, local: Tensor, server: Tensor, active: Tensor) -> Tensor:
        return self.all_scores(path, local, server, active)[-1]

    def all_scores(self, path: Tensor, local: Tensor, server: Tensor, active: Tensor) -> list[Tensor]:
        """The scores of each round, the last one's at the end."""
        air, time = path[..., 0].clamp(min=0), path[..., 2].clamp(min=0)  # [B, N, S, V], slots
        mask = active[..., None, None]
        around = server[:, None, :, None, :].expand(*path.shape[:4], SERVER_FEATURES)
        paths = self.path(torch.cat([path, around], dim=-1))  # [B, N, S, V, H]
        locals_ = self.local(local)  # [B, N, H]
        devices = torch.tanh(self.meet(paths.mean(dim=(2, 3)) + locals_))  # [B, N, H]
        tasks = active.sum(dim=1).clamp(min=1.0)[:, None, None, None]
        nodes = (paths * mask[..., None]).sum(dim=1) / tasks  # [B, S, V, H]
        everything = nodes.mean(dim=(1, 2))[:, None, None].expand_as(nodes)
        nodes = torch.tanh(self.node(torch.cat([nodes, everything], dim=-1)))
        fixed = self.path_fixed(
            torch.cat([paths, devices[:, :, None, None].expand_as(paths), nodes[:, None].expand_as(paths)], dim=-1)
        )
        fixed_local = self.local_fixed(torch.cat([locals_, devices], dim=-1))
        share = torch.zeros_like(air)
        made: list[Tensor] = []
        for _ in range(self.rounds):
            own = torch.stack([share * air, share * time, share], dim=-1) * mask[..., None]  # [B, N, S, V, 3]
            demand = own.sum(dim=(1, 3))  # [B, S, 3]
            others = demand[:, None, :, None] - own.sum(dim=3, keepdim=True)
            others = others * self.unit
            seen = self.path_demand(torch.cat([others, others.square() / 4], dim=-1))  # [B, N, S, 1, H]
            by_path = self.path_score(nn.functional.silu(fixed + seen))[..., 0]
            mean_demand = self.local_demand(demand.mean(dim=1, keepdim=True) * 0.5)  # [B, 1, H]
            by_local = self.local_score(nn.functional.silu(fixed_local + mean_demand))
            scores = torch.cat([by_local, by_path.flatten(2)], dim=2)
            made.append(scores)
            share = torch.softmax(scores, dim=2)[:, :, 1:].reshape(air.shape)
        return made
