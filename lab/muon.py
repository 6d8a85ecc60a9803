"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), for all
matrices of one shape at once.

The update is that of torch.optim.Muon, which takes the matrices one by one: a thousand small products, and
nothing in them for threads to share.

Shapes: N matrices, S their short side, L their long one.
"""

import math
from collections import defaultdict

import torch

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic that is steepest at zero
EPS = 1e-7
# Where a CPU has instructions for bfloat16 it is twice as fast as float32, elsewhere up to 16 times as slow.
# A torch that cannot say gets float32.
BFLOAT16_CPU = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)


def orthogonalise(x):
    """x (N, S, L) = U S V^T → U V^T, but for singular values between 0.5 and 1.5: Newton-Schulz."""
    fast = BFLOAT16_CPU or x.device.type != "cpu"
    x = x.to(torch.bfloat16 if fast else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)  # no singular value is above 1
    for _ in range(STEPS):
        gram = x @ x.mT  # (N, S, S)
        gram = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, gram, x, beta=A)
    return x


class Muon(torch.optim.Optimizer):
    """For matrices alone. Weight decay is decoupled; a tall matrix learns √(rows / columns) times as fast.

    It takes up the state of torch.optim.Muon.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[min(p.shape), max(p.shape)].append(p)
            for matrices in alike.values():
                updates = orthogonalise(torch.stack([self._ahead(p, group["momentum"]) for p in matrices]))
                for p, update in zip(matrices, updates):
                    rows, columns = p.shape
                    rate = group["lr"] * math.sqrt(max(1, rows / columns))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.mT if rows > columns else update, alpha=-rate)

    def _ahead(self, p, momentum):
        """Nesterov's momentum of a matrix after this gradient, the short side first (S, L)."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        mean = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        ahead = p.grad.lerp(mean, momentum)
        return ahead.mT if p.shape[0] > p.shape[1] else ahead
