"""The networks of `torch_step.py`: a vision transformer and a projection head with the official parameter names."""

import torch
import torch.nn.functional as F
from torch import nn


class PatchEmbed(nn.Module):
    """Patches of `patch` x `patch` pixels to vectors; rows of the grid first."""

    def __init__(self, dim, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)  # [B, 3, H, W] -> [B, N, D]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Residual(nn.Module):
    """Adds a branch to the residual stream."""

    def forward(self, x, branch):
        return x + branch


class LayerScale(nn.Module):
    """Adds a branch to the residual stream, each channel times its `gamma`: `x + gamma * branch` in one pass."""

    def __init__(self, dim, init):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x, branch):
        return torch.addcmul(x, self.gamma, branch)


class Block(nn.Module):
    def __init__(self, dim, heads, layer_scale):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else Residual()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else Residual()

    def forward(self, x):
        x = self.ls1(x, self.attn(self.norm1(x)))
        return self.ls2(x, self.mlp(self.norm2(x)))


class Vit(nn.Module):
    """A ViT whose position table is learned for square images of `size` pixels and resized for others. `layer_scale` is
    what LayerScale starts at; None leaves it out."""

    def __init__(self, dim, depth, heads, patch, size, layer_scale=1e-5):
        super().__init__()
        self.patch, self.side = patch, size // patch
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.side**2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.resizers = {}
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        init_linear(self)

    def positions(self, height, width):
        """The table for a grid of `height` x `width` patches, [1, 1 + N, D]. A bicubic resize is linear in the table,
        so its matrix is made once for a grid and kept; only a product is left for each step."""
        if height == width == self.side:
            return self.pos_embed
        if (height, width) not in self.resizers:
            matrix = resize_matrix(self.side, height, width)
            self.resizers[height, width] = matrix.to(self.pos_embed.device)
        with torch.autocast(self.pos_embed.device.type, enabled=False):
            patches = self.resizers[height, width] @ self.pos_embed[0, 1:]
        return torch.cat([self.pos_embed[:, :1], patches[None]], dim=1)

    def forward(self, images, masks=None):
        """`images` [B, 3, H, W] and, for masked crops, `masks` [B, N] to the normed tokens [B, 1 + N, D], CLS first."""
        x = self.patch_embed(images)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(images.shape[2] // self.patch, images.shape[3] // self.patch)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def resize_matrix(side, height, width):
    """The matrix [height * width, side * side] that resizes a square table bicubically, as the official code does it: by
    a scale that is 0.1 too large, without antialiasing."""
    units = torch.eye(side * side).view(side * side, 1, side, side)
    scale = ((height + 0.1) / side, (width + 0.1) / side)
    return F.interpolate(units, scale_factor=scale, mode="bicubic").view(side * side, -1).T.contiguous()


class Prototypes(nn.Module):
    """A weight-normed linear layer without bias: row k of the weight is `weight_g[k] * weight_v[k] / |weight_v[k]|`."""

    def __init__(self, width, prototypes):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(nn.Linear(width, prototypes, bias=False).weight.detach())

    def forward(self, x):
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    """Three linear layers, the unit sphere, prototypes: [rows, D] to cosines [rows, K]."""

    def __init__(self, dim, hidden, bottleneck, prototypes):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        init_linear(self)
        self.last_layer = Prototypes(bottleneck, prototypes)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x).float(), dim=-1, eps=1e-12))


class Projector(nn.Module):
    """The head of MoCo v2: two linear layers, then the unit sphere of `width` dimensions."""

    def __init__(self, dim, hidden, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
        init_linear(self)

    def forward(self, x):
        return F.normalize(self.mlp(x).float(), dim=-1)


def init_linear(module):
    """Weights of every linear layer normal with deviation 0.02, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
