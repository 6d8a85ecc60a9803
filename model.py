"""Qwen2.5 by hand: RMSNorm, rotary positions, grouped-query attention with QKV bias, SwiGLU, tied embeddings.

Shapes: B rows, T positions, C model width, H query heads, K key/value heads, D head width, V vocabulary.
state_dict keys are those of transformers' Qwen2ForCausalLM, so weights travel both ways.
"""

from dataclasses import dataclass
from functools import partial

from lab.options import UserError

import torch
import torch.nn.functional as F
from torch import nn

from attention import BACKENDS, Layout

# Of a fresh model with tied embeddings: the logit of the token itself, which the final norm's first weight
# sets. All others are near 0, so that the first loss is about ln V at every width; a weight of 1 would make
# it √C. A smaller one costs the first steps, in which the norm's weight has to grow.
FIRST_LOGIT = 4.0


@dataclass(frozen=True)
class ModelConfig:
    """Field names and meanings of transformers' Qwen2Config."""

    vocab_size: int = 2200
    hidden_size: int = 768  # C
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # H
    num_key_value_heads: int = 2  # K
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float | None = None  # standard deviation of the first weights; None: 1/√C

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{name} must be positive, not {value}")
        C, H, K = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if C % H or self.head_dim % 2:
            raise UserError(f"hidden size {C} must be {H} heads of one even width")
        if H % K:
            raise UserError(f"{H} query heads cannot share {K} key/value heads evenly")

    @property
    def head_dim(self):  # D
        return self.hidden_size // self.num_attention_heads


class RMSNorm(nn.RMSNorm):
    """In float32, whatever comes in."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def rotary(positions, head_dim, theta):
    """cos and sin of the rotary angles, (B, T, 1, D) each, for positions (B, T) (Su et al. 2021, eq. 34)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[:, :, None, None].float() * theta**-exponent  # (B, T, 1, D/2)
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turn the pairs (x_i, x_{i+D/2}) of x (B, T, heads, D) by their angles.

    In float32: a head that looks things up needs them exact.
    """
    x = x.float()
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.head_dim = D
        self.q_proj = nn.Linear(C, config.num_attention_heads * D)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=False)

    def forward(self, x, cos, sin, attend):
        B, T, _ = x.shape
        # (B, T, H or K, D)
        q, k, v = (f(x).view(B, T, -1, self.head_dim) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, attend):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    def __init__(self, config, backend=BACKENDS["sdpa"]):
        super().__init__()
        self.config, self.backend = config, backend
        # of matrix products in the layers; weights, sums, norms and logits stay float32
        self.compute_dtype = torch.float32
        # Where only the shapes count nothing is drawn: to draw on meta torch would import its compiler first.
        blank = torch.empty(config.vocab_size, config.hidden_size)
        embed = nn.Embedding(*blank.shape, _weight=blank if blank.is_meta else None)
        layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.model = nn.ModuleDict(dict(embed_tokens=embed, layers=layers, norm=norm))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.initial_std = config.initializer_range or config.hidden_size**-0.5
        if not blank.is_meta:
            self.initialise(self.initial_std)

    def initialise(self, std):
        """Fresh weights. What layers add starts at zero, so that a token is itself until they learn."""
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.0 if "o_proj" in name or "down_proj" in name else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        nn.init.constant_(self.model.norm.weight, FIRST_LOGIT / (self.config.hidden_size * std))

    def look_nearby(self, strength=3.0, spacing=2, frequencies=6):
        """Start the first layer's heads as local ones: head h looks about spacing * (h + 1) positions back.

        Equal biases of queries and keys make a score that depends on the distance alone, since rotary
        positions turn them apart: turned against each other by the angles of distance d, they agree most at
        d. A small model finds induction (look back, then look up) much sooner from there; training is free to
        undo it.
        """
        config, attention = self.config, self.model.layers[0].self_attn
        D, n = config.head_dim, min(frequencies, config.head_dim // 2)
        angle = config.rope_theta ** (-2 * torch.arange(n) / D)
        with torch.no_grad():
            attention.k_proj.bias.view(-1, D)[:, :n] = strength
            for h, bias in enumerate(attention.q_proj.bias.view(-1, D)):
                turn = angle * spacing * (h + 1)
                bias[:n], bias[D // 2 : D // 2 + n] = strength * turn.cos(), -strength * turn.sin()

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())

    def autocast(self):
        """Within it, the layers' matrix products are taken in `compute_dtype`."""
        half = self.compute_dtype != torch.float32
        return torch.autocast(self.lm_head.weight.device.type, self.compute_dtype, enabled=half)

    def compile_layers(self, **options):
        """Have torch.compile (with these options) fuse what stands between the matrix products.

        One code for all layers. Each number of rows and tokens gets its own: code for any number would be
        slower, and one batch of another shape, of an evaluation say, would make it replace what training
        runs.
        """
        torch._dynamo.config.recompile_limit = 64  # shapes, after which others would run as they are
        for layer in self.model.layers:
            layer.compile(dynamic=False, **options)

    def head(self, x):
        """Logits, always in float32: of a logit of 20 bfloat16 keeps no more than 1/16."""
        with torch.autocast(x.device.type, enabled=False):
            return self.lm_head(x.float())

    def hidden(self, tokens, positions, attend):
        """The last layer's normed output, (B, T, C). positions (B, T): of each token in its document.

        attend: one function for each layer, of its q (B, T, H, D), k and v (B, T, K, D) → (B, T, H, D):
        attention, or, in the sampler, over what came before too.
        """
        x = self.model.embed_tokens(tokens)  # (B, T, C)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for layer, look in zip(self.model.layers, attend):
            x = layer(x, cos, sin, look)
        return self.model.norm(x)

    def logits(self, tokens, layout=None, where=None):
        """tokens (B, T) → (B, T, V), or with where, (B, T) bools, those (N, V) alone.

        layout: a Layout, or doc_start (B, T), the first position of each token's document, or None: a row is
        one document. A document sees exactly what it would see alone.
        """
        with self.autocast():
            if layout is None:
                positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
            else:
                layout = layout if isinstance(layout, Layout) else Layout.of(layout)
                positions = layout.positions
                self.backend.prepare(layout, self.lm_head.weight)  # once, and not in what is compiled
            attend = partial(self.backend.attend, layout=layout)
            x = self.hidden(tokens, positions, [attend] * self.config.num_hidden_layers)
            return self.head(x if where is None else x[where])

    def forward(self, tokens, doc_start=None, targets=None, *, loss_only=False):
        """tokens (B, T) → (logits (B, T, V), None), or with targets (B, T) → (logits, mean loss).

        The mean is over the targets ≥ 0. doc_start: as `layout` of `logits`. loss_only: form logits only
        where there is a target, and return (None, loss).
        """
        if targets is None:
            return self.logits(tokens, doc_start), None
        keep = targets >= 0
        logits = self.logits(tokens, doc_start, keep if loss_only else None)
        loss = F.cross_entropy((logits if loss_only else logits[keep]).float(), targets[keep])
        return None if loss_only else logits, loss
