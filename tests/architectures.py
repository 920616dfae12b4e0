"""Small networks that are not ours: ordinary torch modules and functional calls, in the styles that people use.

`ARCHITECTURES` maps a name to a builder, which returns the network in evaluation mode, the shape of one input
(channels, height, width) and the number of classes. A builder returns the same values at every call, and inputs are so
small that the whole Hessian by automatic differentiation takes a fraction of a second. `REFUSED` maps a name to a
network whose loss is no plain, deterministic and smooth sum over examples, with a pattern of what its refusal names.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from quadscape.config.sections import CNN, MLP
from quadscape.network.models import build_model

Built = tuple[nn.Module, tuple[int, int, int], int]
ARCHITECTURES: dict[str, Callable[[], Built]] = {}


def _architecture(
    name: str, shape: tuple[int, int, int], classes: int
) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    def register(network: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        def build() -> Built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model = network(classes).eval()
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                        # Frozen, but not at the initial statistics, with which it would do nothing.
                        module.running_mean.normal_(0.0, 0.3)
                        module.running_var.uniform_(0.5, 2.0)
            return model, shape, classes

        ARCHITECTURES[name] = build
        return network

    return register


# ---------------------------------------------------------------------------------------------------------------------
# Convolutional networks


@_architecture("vgg-relu", (1, 8, 8), 3)
def _vgg_relu(classes):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.PReLU(4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(6, classes),
    )


@_architecture("built-in-cnn", (2, 4, 6), 3)
def _built_in_cnn(classes):
    return build_model(
        CNN(factory="cnn", channels=(2, 3), depth=2, skip=True, channels_per_group=1), (2, 4, 6), classes
    )


@_architecture("built-in-mlp", (1, 2, 2), 3)
def _built_in_mlp(classes):
    config = MLP(factory="mlp", hidden=(4, 4, 3), activation="sigmoid", normalization="layer", skip=True)
    return build_model(config, (1, 2, 2), classes)


@_architecture("vgg-smooth", (3, 7, 9), 4)
class _VGGSmooth(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, (3, 2)), nn.Conv2d(4, 4, 1)])
        self.classifier = nn.Linear(8, classes)

    def forward(self, x):
        x = F.max_pool2d(F.softplus(self.features[0](x), beta=2.0), 3, stride=2, padding=1)
        x = F.gelu(self.features[1](x), approximate="tanh")
        x = F.max_pool2d(F.silu(self.features[2](x)), (2, 3), stride=1)
        return self.classifier(F.dropout(x, 0.3, self.training).flatten(1))


@_architecture("preactivation-resnet", (2, 6, 6), 3)
class _PreActivationResNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if stride > 1 else None
            self.activation = nn.SiLU(inplace=True)

        def forward(self, x):
            out = self.activation(self.norm1(x))
            identity = x if self.shortcut is None else self.shortcut(out)
            out = self.conv2(self.activation(self.norm2(self.conv1(out))))
            out += identity
            return out

    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(self.Block(2, 2, 1), self.Block(2, 4, 2))
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(F.silu(self.norm(self.blocks(self.stem(x)))).mean(dim=(2, 3)))


@_architecture("grouped-bottleneck", (2, 6, 5), 3)
class _GroupedBottleneck(nn.Module):
    """As in ResNeXt, with the channel shuffle of ShuffleNet."""

    def __init__(self, classes):
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.grouped, self.norm2 = nn.Conv2d(6, 6, 3, stride=(2, 1), padding=1, groups=3, bias=False), nn.BatchNorm2d(6)
        self.expand, self.norm3 = nn.Conv2d(6, 4, 1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.AvgPool2d((2, 1), ceil_mode=True), nn.Conv2d(2, 4, 1))
        self.head = nn.Conv2d(4, classes, (3, 5))

    def forward(self, x):
        out = F.gelu(self.norm1(self.reduce(x)))
        n, c, h, w = out.shape
        out = out.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        out = F.mish(self.norm2(self.grouped(out)))
        return self.head(torch.tanh(self.norm3(self.expand(out)) + self.shortcut(x))).flatten(1)


@_architecture("densenet", (1, 6, 6), 3)
class _DenseNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(3), nn.GroupNorm(5, 5)])
        self.transition = nn.Conv2d(7, 3, 1)
        self.head = nn.Linear(27, classes)

    def forward(self, x):
        features = [x]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.gelu(norm(torch.cat(features, 1)))))
        return self.head(F.avg_pool2d(self.transition(torch.cat(features, dim=1)), 2).flatten(1))


@_architecture("depthwise-separable", (3, 7, 6), 4)
class _DepthwiseSeparable(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.depthwise1 = nn.Conv2d(3, 6, 3, stride=2, groups=3)
        self.pointwise1 = nn.Conv2d(6, 4, 1)
        self.depthwise2 = nn.Conv2d(4, 4, (3, 2), padding=(2, 1), dilation=(2, 3), groups=4, bias=False)
        self.pointwise2 = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        x = self.pointwise1(torch.tanh(self.depthwise1(F.pad(x, (0, 1, 1, 0)))))
        x = self.pointwise2(F.mish(self.depthwise2(x)))
        return self.head(F.adaptive_avg_pool2d(F.silu(x), 1).squeeze(-1).squeeze(-1))


@_architecture("squeeze-excite", (2, 5, 5), 3)
class _SqueezeExcite(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.spatial = nn.Conv2d(4, 1, 1)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = F.silu(self.conv1(x))
        out = self.conv2(x)
        gates = torch.sigmoid(self.excite(F.gelu(self.squeeze(out.mean(dim=(2, 3))))))
        out = out * gates[:, :, None, None] * self.spatial(out).sigmoid() + x
        return self.head(F.softplus(out).sum(dim=(-2, -1)) / 4)


@_architecture("convnext", (3, 8, 8), 3)
class _ConvNeXt(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.stem_norm = nn.GroupNorm(2, 4)
        self.depthwise = nn.Conv2d(4, 4, 5, padding=2, groups=4)
        self.norm = nn.LayerNorm(4, eps=1e-3)
        self.wide, self.narrow = nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.head_norm, self.head = nn.LayerNorm(4, eps=1e-3), nn.Linear(4, classes)

    def forward(self, x):
        x = self.stem_norm(self.stem(x))
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.scale * self.narrow(F.gelu(self.wide(out)))
        x = x + out.permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean([-2, -1])))


@_architecture("conv1d", (2, 4, 6), 3)
def _conv1d(classes):
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(2, 4, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.AvgPool1d(2),
        nn.Conv1d(4, 4, 2, dilation=2, groups=2),
        nn.BatchNorm1d(4),
        nn.SELU(),
        nn.Conv1d(4, 2, 3, padding="same", bias=False),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


@_architecture("u-net", (1, 6, 8), 3)
class _UNet(nn.Module):
    """Transposed convolutions, up-sampling, and a shortcut across the bottleneck."""

    def __init__(self, classes):
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(3, 4, 2)
        self.up1 = nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 2), padding=(0, 2), output_padding=(0, 1), groups=2)
        self.up2 = nn.ConvTranspose2d(7, 2, 2, stride=2, bias=False)
        self.out = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        low = F.gelu(self.down(x))
        lowest = torch.tanh(self.middle(low))
        up = F.interpolate(self.up1(lowest), size=low.shape[-2:], mode="bilinear", align_corners=False)
        up = F.silu(self.up2(torch.cat([low, up], dim=1)))
        return self.out(torch.cat([x, up], dim=1)).flatten(2).logsumexp(dim=-1)


@_architecture("padding-modes", (1, 5, 6), 3)
def _padding_modes(classes):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.GELU(),
        nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)),
        nn.Softsign(),
        nn.Conv2d(3, 2, 3, padding=(1, 2), stride=2, padding_mode="reflect"),
        nn.LogSigmoid(),
        nn.ReplicationPad2d((1, 0, 0, 1)),
        nn.Conv2d(2, 2, 2, padding="valid"),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


@_architecture("instance-norm", (2, 5, 5), 3)
class _InstanceNorm(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 3, 3, padding=1), nn.InstanceNorm2d(3, eps=1e-2, affine=True)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(3, 3, eps=1e-2, affine=False)
        self.head = nn.Linear(75, classes)

    def forward(self, x):
        x = torch.tanh(self.norm1(self.conv1(x)))
        return self.head(F.gelu(self.norm2(self.conv2(x))).flatten(1))


@_architecture("without-bias", (1, 6, 6), 3)
def _without_bias(classes):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3, affine=False),
        nn.CELU(),
        nn.Conv2d(3, 4, 3, stride=3, padding=1, bias=False),
        nn.Hardtanh(-2.0, 2.0),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
        nn.Tanh(),
        nn.Linear(5, classes, bias=False),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Attention and mixing


@_architecture("multihead-attention", (1, 6, 4), 3)
class _MultiheadAttention(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(6, 4))
        self.norm = nn.LayerNorm(4, eps=1e-3)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        normed = self.norm(x)
        return self.head((x + self.attention(normed, normed, normed)[0]).mean(dim=1))


@_architecture("scaled-dot-product", (1, 4, 6), 4)
class _ScaledDotProduct(nn.Module):
    """Two causal heads, a class token, RMS normalisation, gated feed-forward: no module of attention."""

    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(6, 4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, 4))
        self.norm = nn.RMSNorm(4, eps=1e-3)
        self.qkv = nn.Linear(4, 12, bias=False)
        self.out = nn.Linear(4, 4)
        self.gate, self.back = nn.Linear(4, 10), nn.Linear(5, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = self.embed(x.squeeze(1))
        x = torch.cat([x, self.token.expand(x.shape[0], -1, -1)], dim=1)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.back(F.glu(self.gate(x), dim=-1))
        return self.head(x[:, -1])


@_architecture("masked-softmax-attention", (1, 4, 4), 3)
class _MaskedSoftmaxAttention(nn.Module):
    """Attention written out, with a constant mask made in `forward` and a learned bias of the scores."""

    def __init__(self, classes):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.bias = nn.Parameter(0.3 * torch.randn(4, 4))
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = x[:, 0]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / 2 + self.bias
        above = torch.ones(4, 4, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(above, float("-inf")).softmax(dim=-1)
        return self.head(torch.tanh(torch.bmm(weights, self.value(x))).flatten(1))


@_architecture("transformer-encoder", (1, 4, 4), 3)
class _TransformerEncoder(nn.Module):
    def __init__(self, classes):
        super().__init__()
        settings = {"dim_feedforward": 5, "activation": "gelu", "batch_first": True, "layer_norm_eps": 1e-3}
        self.after = nn.TransformerEncoderLayer(4, 2, **settings)
        self.before = nn.TransformerEncoderLayer(4, 1, norm_first=True, bias=False, **settings)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.before(self.after(x.squeeze(1))).mean(dim=1))


@_architecture("mlp-mixer", (2, 4, 4), 3)
class _Mixer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(8, 5)
        self.norm1, self.norm2 = nn.LayerNorm(5, eps=1e-3), nn.LayerNorm((4, 5), eps=1e-3)
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.Linear(5, 6), nn.GELU(approximate="tanh"), nn.Linear(6, 5))
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        n = x.shape[0]
        x = x.reshape(n, 2, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, 4, 8)
        x = self.embed(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


# ---------------------------------------------------------------------------------------------------------------------
# Parameters in unusual places


@_architecture("tied-layers", (1, 4, 4), 3)
class _TiedLayers(nn.Module):
    """One Linear called twice, a second module that holds the same parameter, and one that reads it transposed."""

    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(16, 6)
        self.twice = nn.Linear(6, 6)
        self.once = nn.Linear(6, 6)
        self.once.weight = self.twice.weight
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.tanh(self.embed(x.flatten(1)))
        x = F.gelu(self.twice(torch.tanh(self.twice(x))))
        x = torch.tanh(self.once(x))
        return self.head(torch.tanh(F.linear(x, self.embed.weight.t())))


@_architecture("parameter-of-two-operations", (2, 4, 4), 3)
class _ParameterOfTwoOperations(nn.Module):
    """The same parameters as kernel, as matrix, as bias, as addend and as factor."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(0.4 * torch.randn(8, 2, 2, 2))
        self.bias = nn.Parameter(0.3 * torch.randn(8))
        self.head = nn.Parameter(0.4 * torch.randn(16, classes))

    def forward(self, x):
        x = torch.tanh(F.conv2d(x, self.weight, self.bias, stride=2))
        x = F.linear(x.movedim(1, -1), self.weight.flatten(1).mT) * self.bias.sum()
        x = F.softplus(torch.addmm(self.bias, x.mean(dim=(1, 2)), self.weight.flatten(1)))
        return torch.cat([x, self.bias * x], dim=-1) @ self.head


@_architecture("recurrent", (1, 5, 4), 3)
class _Recurrent(nn.Module):
    """Weights used once per row of the image."""

    def __init__(self, classes):
        super().__init__()
        self.inward, self.across = nn.Linear(4, 5), nn.Linear(5, 5, bias=False)
        self.gate = nn.Linear(9, 5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 5)
        for row in x.squeeze(1).unbind(1):
            keep = torch.sigmoid(self.gate(torch.cat([row, state], dim=1)))
            state = torch.lerp(torch.tanh(self.inward(row) + self.across(state)), state, keep)
        return self.head(state)


@_architecture("weight-normalised", (2, 5, 5), 3)
class _WeightNormalised(nn.Module):
    """The weights of the convolutions are no leaves: scale times direction, or standardised."""

    def __init__(self, classes):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.size = nn.Parameter(torch.rand(4) + 0.5)
        self.raw = nn.Parameter(torch.randn(3, 4, 2, 2))
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        norm = torch.linalg.vector_norm(self.direction, dim=(1, 2, 3), keepdim=True)
        x = F.gelu(F.conv2d(x, self.size.view(-1, 1, 1, 1) * self.direction / norm))
        mean = self.raw.mean(dim=(1, 2, 3), keepdim=True)
        weight = (self.raw - mean) / (self.raw.var(dim=(1, 2, 3), keepdim=True) + 0.1).sqrt() / 3
        return self.head(torch.tanh(F.conv2d(x, weight)).flatten(1))


@_architecture("parametrised-by-torch", (1, 5, 5), 3)
def _parametrised_by_torch(classes):
    return nn.Sequential(
        weight_norm(nn.Conv2d(1, 4, 3)),
        nn.GELU(),
        nn.Flatten(),
        spectral_norm(nn.Linear(36, 4)),
        nn.Tanh(),
        weight_norm(nn.Linear(4, classes), dim=None),
    )


@_architecture("einsum", (2, 3, 4), 3)
class _Einsum(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.core = nn.Parameter(0.5 * torch.randn(2, 3, 4, 5))
        self.experts = nn.Parameter(0.5 * torch.randn(3, 5, 4))
        self.gate = nn.Parameter(0.5 * torch.randn(5, 3))
        self.bilinear = nn.Bilinear(4, 4, 2)
        self.head = nn.Parameter(0.5 * torch.randn(classes, 6))

    def forward(self, x):
        x = torch.tanh(torch.einsum("nchw,chwk->nk", x, self.core))
        gates = torch.softmax(torch.matmul(x, self.gate), dim=-1)
        x = torch.einsum("ne,nk,ekj->nj", gates, x, self.experts)
        x = torch.cat([x, self.bilinear(x, torch.sin(x))], dim=1)
        return torch.einsum("kj,nj->nk", self.head, F.silu(x))


@_architecture("scalar-parameters", (1, 5, 5), 3)
class _ScalarParameters(nn.Module):
    """Scalars as scale, shift, exponent and mixing weight; and a parameter that nothing uses."""

    def __init__(self, classes):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.tensor(0.2))
        self.unused = nn.Parameter(torch.randn(3))
        self.exponent = nn.Parameter(torch.tensor([1.5]))
        self.conv = nn.Conv2d(1, 3, 3)
        self.mixing = nn.Parameter(torch.tensor(0.4))
        self.head = nn.Linear(27, classes)

    def forward(self, x):
        x = self.conv(self.scale * x + self.shift)
        x = self.mixing.sigmoid() * torch.tanh(x) + (1 - self.mixing.sigmoid()) * F.softplus(x) ** self.exponent
        return self.head(x.flatten(1))


@_architecture("linear-parameters", (1, 4, 4), 3)
class _LinearParameters(nn.Module):
    """Parameters that enter the scores only linearly, under a fixed pattern and as an offset by position."""

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Linear(16, 5)
        self.offset = nn.Parameter(0.3 * torch.randn(classes))
        self.table = nn.Parameter(0.3 * torch.randn(4, 4, classes))
        self.head = nn.Linear(5, classes, bias=False)

    def forward(self, x):
        where = torch.linspace(-1.0, 1.0, 4, dtype=x.dtype, device=x.device)
        pattern = (x[:, 0] * where[:, None] * where)[..., None] * self.table
        return self.head(torch.sin(self.features(x.flatten(1)))) + self.offset + pattern.sum(dim=(1, 2))


@_architecture("concatenated-outputs", (2, 4, 4), 5)
class _ConcatenatedOutputs(nn.Module):
    """A shared trunk that is split, two heads for two groups of classes, and slices along the image."""

    def __init__(self, classes):
        super().__init__()
        self.trunk = nn.Conv2d(2, 6, 2)
        self.coarse = nn.Linear(9, 2)
        self.fine = nn.ModuleDict({"left": nn.Linear(6, 3), "right": nn.Linear(6, 3)})

    def forward(self, x):
        first, second, third = torch.chunk(self.trunk(x), 3, dim=1)
        gated = first.sigmoid() * second.tanh() + third.square() / 4
        fine = self.fine["left"](gated[:, 0, :, :2].flatten(1)) * self.fine["right"](gated[:, 1, :, 1:].flatten(1))
        coarse = self.coarse(torch.amax(gated, dim=1).flatten(1))
        return torch.cat((coarse, fine), dim=1)


@_architecture("cosine-classifier", (1, 5, 5), 4)
class _CosineClassifier(nn.Module):
    """The last layer is not linear: cosines under a learned temperature on a logarithmic scale."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.features = nn.Linear(12, 6)
        self.prototypes = nn.Parameter(torch.randn(classes, 6))
        self.log_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = self.features(F.softplus(self.conv(x)).flatten(1))
        cosines = F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).t()
        return torch.log_softmax(cosines * self.log_scale.exp(), dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be exact


class _Changed(nn.Module):
    """A small network with one thing done to its hidden layer, of shape (n, 6)."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 6), nn.Linear(6, 3)
        self.change = change

    def forward(self, x):
        return self.head(self.change(torch.tanh(self.hidden(x.flatten(1)))))


def _branch_on_the_data(x):
    return x if x.sum() > 0 else 2 * x


class _CountsItsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x / self.calls


class _AttendsToOtherExamples(nn.Module):
    """A common mistake: batch_first is left out, so that examples are taken for positions."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1)

    def forward(self, x):
        x = x.unflatten(1, (3, 2))
        return self.attention(x, x, x)[0].flatten(1)


_NAMES_EXAMPLES = r"(?i)\bexamples?\b"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm in training mode": (
        lambda: _Changed(lambda x: F.batch_norm(x, None, None, training=True)),
        r"(?i)batch[ _]?norm",
    ),
    "active dropout": (lambda: _Changed(lambda x: F.dropout(x, 0.5, training=True)), r"(?i)dropout"),
    "control flow by the data": (lambda: _Changed(_branch_on_the_data), r"(?i)control flow|branch"),
    "random numbers": (lambda: _Changed(lambda x: x + 0.1 * torch.randn_like(x)), r"(?i)random"),
    "a buffer that is updated": (lambda: _Changed(_CountsItsCalls()), r"(?i)buffer"),
    "centring over the batch": (lambda: _Changed(lambda x: x - x.mean(dim=0)), _NAMES_EXAMPLES),
    "attention over the batch": (lambda: _Changed(_AttendsToOtherExamples()), _NAMES_EXAMPLES),
    "a factor by the size of the batch": (lambda: _Changed(lambda x: x * x.shape[0] / 4), _NAMES_EXAMPLES),
    "examples in another order": (lambda: _Changed(lambda x: x.flip(0)), _NAMES_EXAMPLES),
}
