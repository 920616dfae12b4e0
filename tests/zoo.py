"""A zoo of networks that people really train, narrowed until a column of their Hessian takes milliseconds.

`ZOO` maps a name to an `Animal`: torchvision's own classes with small arguments, and small networks of other kinds.
Builders return the same values at every call, in float64 and in evaluation mode, with BatchNorm at statistics with
which it does something. `REFUSED` maps the names of those that the engine refuses to a pattern of what it says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.models import (
    convnext,
    efficientnet,
    inception,
    mnasnet,
    mobilenetv3,
    regnet,
    resnet,
    squeezenet,
    swin_transformer,
    vgg,
)
from torchvision.models.densenet import DenseNet
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.maxvit import MaxVit
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import FeaturePyramidNetwork

REFUSED: dict[str, str] = {
    "conditional": r"cond|branch",
    "embedding-bag": r"embedding_bag",
    "energy-gradient": r"cannot be differentiated|fixed list of operations",
    "opaque-functions": r"cannot be differentiated|Hessian product differs",
}


@dataclass(frozen=True)
class Animal:
    """A network and what it is tried on.

    Attributes:
        network: Builds it, for a number of classes.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        count: Number of images.
        loss: Which loss.
        long: Whether it is tried only in the long tests.
    """

    network: Callable[[int], nn.Module]
    shape: tuple[int, int, int]
    classes: int
    count: int
    loss: str
    long: bool

    def build(self) -> nn.Module:
        """The network."""
        before = torch.get_default_dtype()
        # A cast leaves complex buffers in single precision.
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model = self.network(self.classes).double().eval()  # torchvision's own float32 tables
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                        module.running_mean.normal_(0.0, 0.3)
                        module.running_var.uniform_(0.5, 2.0)
        finally:
            torch.set_default_dtype(before)
        return model


ZOO: dict[str, Animal] = {}


def _animal(
    name: str,
    shape: tuple[int, int, int],
    classes: int = 3,
    *,
    count: int = 3,
    loss: str = "cross_entropy",
    long: bool = False,
) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    def register(network: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        ZOO[name] = Animal(network, shape, classes, count, loss, long)
        return network

    return register


# ---------------------------------------------------------------------------------------------------------------------
# torchvision: convolutional networks


class _NarrowResNet(resnet.ResNet):
    """torchvision's class, whose widths are no arguments."""

    narrower = 32

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // self.narrower, *args, **kwargs)


@_animal("resnet-bottleneck-dilated", (3, 24, 24), long=True)
def _resnet_bottleneck(classes):
    model = _NarrowResNet(
        resnet.Bottleneck,
        [1, 1, 1, 1],
        groups=2,
        width_per_group=64,
        replace_stride_with_dilation=[False, True, True],
    )
    model.fc = nn.Linear(64, classes)
    return model


@_animal("resnet-basic-group-norm", (3, 32, 32), loss="squared_error", long=True)
def _resnet_basic(classes):
    model = _NarrowResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=partial(nn.GroupNorm, 2))
    model.fc = nn.Linear(16, classes)
    return model


@_animal("wide-resnet-last-layers", (8, 6, 6), long=True)
def _wide_resnet(classes):
    shortcut = nn.Sequential(resnet.conv1x1(8, 8, 2), nn.BatchNorm2d(8))
    block = resnet.Bottleneck(8, 2, stride=2, downsample=shortcut, base_width=128)
    return nn.Sequential(block, resnet.Bottleneck(8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


@_animal("convnext", (3, 12, 12), long=True)
def _convnext(classes):
    settings = [convnext.CNBlockConfig(4, 8, 1), convnext.CNBlockConfig(8, None, 1)]
    return convnext.ConvNeXt(settings, layer_scale=0.3, num_classes=classes)


@_animal("efficientnet", (3, 16, 16), long=True)
def _efficientnet(classes):
    settings = [
        efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0),
        efficientnet.MBConvConfig(2, 5, 2, 8, 8, 2, 1.0, 1.0),
    ]
    return efficientnet.EfficientNet(settings, dropout=0.2, num_classes=classes, last_channel=16)


@_animal("efficientnet-v2", (3, 12, 12), loss="squared_error")
def _efficientnet_v2(classes):
    settings = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        efficientnet.FusedMBConvConfig(2, 3, 2, 8, 8, 1),
        efficientnet.MBConvConfig(2, 3, 2, 8, 8, 1),
    ]
    return efficientnet.EfficientNet(settings, dropout=0.2, num_classes=classes, last_channel=16)


@_animal("mobilenet-v2", (3, 16, 16), long=True)
def _mobilenet_v2(classes):
    setting = [[1, 8, 1, 1], [2, 8, 2, 2]]
    return MobileNetV2(classes, inverted_residual_setting=setting, round_nearest=4, width_mult=0.25)


@_animal("mobilenet-v3", (3, 16, 16))
def _mobilenet_v3(classes):
    settings = [
        mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0),
    ]
    return mobilenetv3.MobileNetV3(settings, last_channel=12, num_classes=classes)


@_animal("densenet", (3, 24, 24), long=True)
def _densenet(classes):
    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=classes)


@_animal("shufflenet-v2", (3, 32, 32), long=True)
def _shufflenet_v2(classes):
    return ShuffleNetV2([1, 2, 1], [8, 8, 16, 24, 32], num_classes=classes)


@_animal("regnet", (3, 16, 16), loss="squared_error", long=True)
def _regnet(classes):
    params = regnet.BlockParams([1, 2], [8, 16], [4, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return regnet.RegNet(params, classes, stem_width=8)


@_animal("googlenet-blocks", (3, 12, 12), long=True)
def _googlenet(classes):
    return nn.Sequential(
        BasicConv2d(3, 8, kernel_size=3, stride=2, padding=1),
        Inception(8, 3, 3, 4, 2, 3, 2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Inception(12, 4, 3, 4, 2, 2, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(12, classes),
    )


def _narrow_convolution(inputs, outputs, **settings):
    return inception.BasicConv2d(inputs // 16, outputs // 16, **settings)


@_animal("inception-v3-blocks", (12, 9, 9), long=True)
def _inception(classes):
    return nn.Sequential(
        inception.InceptionA(192, 32, conv_block=_narrow_convolution),
        inception.InceptionB(256, conv_block=_narrow_convolution),
        inception.InceptionC(736, 64, conv_block=_narrow_convolution),
        inception.InceptionE(768, conv_block=_narrow_convolution),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


@_animal("squeezenet", (3, 16, 16), loss="squared_error", long=True)
def _squeezenet(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        squeezenet.Fire(8, 2, 4, 4),
        squeezenet.Fire(8, 3, 4, 6),
        nn.Dropout(0.5),
        nn.Conv2d(10, classes, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


@_animal("mnasnet-blocks", (3, 12, 12), long=True)
def _mnasnet(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        mnasnet._stack(4, 4, 3, 1, 2, 2, 0.1),
        mnasnet._stack(4, 6, 5, 2, 2, 1, 0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )


@_animal("vgg-batch-norm", (3, 16, 16), long=True)
def _vgg(classes):
    features = vgg.make_layers([4, "M", 6, 6, "M", 8, "M"], batch_norm=True)
    head = [nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(72, 12), nn.ReLU(True), nn.Linear(12, classes)]
    return nn.Sequential(features, *head)


@_animal("alexnet-like", (3, 24, 24), long=True)
def _alexnet(classes):
    """With the local response normalisation of the original."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5, alpha=0.1, k=2.0),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(6, 8, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(3, alpha=0.1, k=2.0),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
        nn.ReLU(inplace=True),
        nn.Linear(10, classes),
    )


@_animal("atrous-pyramid", (3, 9, 9), long=True)
class _AtrousPyramid(nn.Module):
    """DeepLab's head: scores by pixel, averaged. The up-sampled branch is an expanded value."""

    def __init__(self, classes):
        super().__init__()
        self.stem, self.pyramid, self.head = (
            nn.Conv2d(3, 6, 3, stride=2),
            ASPP(6, [1, 2, 3], 5),
            nn.Conv2d(5, classes, 1),
        )

    def forward(self, x):
        return self.head(self.pyramid(torch.tanh(self.stem(x)))).mean((2, 3))


@_animal("feature-pyramid", (3, 12, 12), long=True)
class _FeaturePyramid(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)])
        self.pyramid = FeaturePyramidNetwork([4, 5, 6], 4)
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        levels = {}
        for number, layer in enumerate(self.down):
            x = F.gelu(layer(x))
            levels[str(number)] = x
        return self.head(torch.cat([level.amax((2, 3)) for level in self.pyramid(levels).values()], dim=1))


# ---------------------------------------------------------------------------------------------------------------------
# torchvision: transformers


@_animal("vision-transformer", (3, 8, 8))
def _vision_transformer(classes):
    return VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=classes)


@_animal("swin", (3, 8, 8), long=True)
def _swin(classes):
    return swin_transformer.SwinTransformer(
        [2, 2], 4, [2, 1], [2, 2], [2, 2], mlp_ratio=2.0, stochastic_depth_prob=0.1, num_classes=classes
    )


@_animal("swin-v2", (3, 8, 8), loss="squared_error", long=True)
def _swin_v2(classes):
    return swin_transformer.SwinTransformer(
        [2, 2],
        4,
        [2],
        [2],
        [2, 2],
        mlp_ratio=2.0,
        num_classes=classes,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )


@_animal("maxvit", (3, 16, 16), long=True)
def _maxvit(classes):
    return MaxVit((16, 16), 4, 2, [4], [1], 2, 0.0, num_classes=classes)


# ---------------------------------------------------------------------------------------------------------------------
# Recurrent


class _Rows(nn.Module):
    """A recurrent module of torch's over the rows of the image."""

    def __init__(self, cells: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.cells = cells
        self.head = nn.Linear(cells.hidden_size * (2 if cells.bidirectional else 1), classes)

    def forward(self, x):
        return self.head(self.cells(x.squeeze(1))[0][:, -1])


@_animal("lstm", (1, 5, 4), count=5)
def _lstm(classes):
    return _Rows(nn.LSTM(4, 6, batch_first=True), classes)


@_animal("gru-bidirectional", (1, 4, 4), loss="squared_error", long=True)
def _gru(classes):
    return _Rows(nn.GRU(4, 5, num_layers=2, batch_first=True, bidirectional=True), classes)


@_animal("rnn", (1, 5, 4), count=5, long=True)
def _rnn(classes):
    return _Rows(nn.RNN(4, 6, batch_first=True), classes)


# ---------------------------------------------------------------------------------------------------------------------
# Attention and mixing


@_animal("transformer-encoder", (1, 5, 8), long=True)
class _Encoder(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.position = nn.Parameter(0.3 * torch.randn(5, 8))
        self.first = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True)
        self.second = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=True, activation=F.gelu)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.second(self.first(x.squeeze(1) + self.position))[:, 0])


@_animal("attention-pooling", (1, 6, 6), count=5, long=True)
class _AttentionPooling(nn.Module):
    """A learned query looks at the rows through torch's module, after a layer with a bias by relative position."""

    def __init__(self, classes):
        super().__init__()
        self.table = nn.Parameter(0.3 * torch.randn(11, 2))
        rows = torch.arange(6)
        self.register_buffer("index", rows[:, None] - rows + 5)
        self.qkv = nn.Linear(6, 18)
        self.query = nn.Parameter(torch.randn(1, 1, 6))
        self.pool = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = x.squeeze(1)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1)
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.head(self.pool(self.query.expand(len(x), -1, -1), x, x)[0].squeeze(1))


@_animal("causal-attention", (1, 5, 6), count=5, loss="squared_error")
class _Causal(nn.Module):
    """A decoder's block with as many keys for all heads, rotary positions as complex factors, and SwiGLU."""

    def __init__(self, classes):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(6, 4)
        angles = torch.outer(torch.arange(5.0), 1.0 / 10.0 ** torch.arange(2.0))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))
        self.norm = nn.RMSNorm(8)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((8, 5), (8, 5), (5, 8)))
        self.head = nn.Linear(8, classes)

    def turned(self, x):
        pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns).flatten(-2)

    def forward(self, x):
        x = x.squeeze(1)
        q = self.turned(self.query(x).unflatten(-1, (2, 4)).transpose(1, 2))
        k = self.turned(self.key(x)[:, None]).expand(-1, 2, -1, -1)
        v = self.value(x)[:, None].expand(-1, 2, -1, -1)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        normed = self.norm(x)
        return self.head((x + self.down(F.silu(self.gate(normed)) * self.up(normed)))[:, -1])


@_animal("linear-attention", (1, 6, 5), count=5)
class _LinearAttention(nn.Module):
    """Positive features of queries and keys; sums over earlier rows instead of a softmax."""

    def __init__(self, classes):
        super().__init__()
        self.qkv = nn.Linear(5, 12)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        q, k, v = self.qkv(x.squeeze(1)).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        states = torch.einsum("nti,ntj->ntij", k, v).cumsum(dim=1)
        mixed = torch.einsum("nti,ntij->ntj", q, states) / (q * k.cumsum(dim=1)).sum(-1, keepdim=True)
        return self.head(mixed.mean(1))


@_animal("mlp-mixer", (1, 4, 6), long=True)
class _Mixer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.tokens = nn.Sequential(nn.LayerNorm(6), nn.Unflatten(0, (-1, 1)), nn.Flatten(0, 1))
        self.across = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.within = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = x.squeeze(1)
        x = x + self.across(self.tokens(x).mT).mT
        return self.head((x + self.within(x)).mean(1))


@_animal("gmlp", (1, 5, 6), count=5, long=True)
class _GatedMLP(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(4, 6)
        self.gate_norm, self.gate = nn.LayerNorm(4), nn.Conv1d(5, 5, 1)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = x.squeeze(1)
        kept, gate = F.gelu(self.wide(self.norm(x))).chunk(2, dim=-1)
        return self.head((x + self.narrow(kept * self.gate(self.gate_norm(gate)))).mean(1))


@_animal("mixture-of-experts", (1, 4, 4), count=5)
class _Mixture(nn.Module):
    """Two of four experts, chosen and weighted by a gate that is differentiable where the choice stays."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.gate = nn.Linear(16, 6), nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 6)) for _ in range(4))
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = torch.tanh(self.embed(x.flatten(1)))
        scores, chosen = self.gate(x).topk(2, dim=-1)
        weights = torch.zeros_like(self.gate(x)).scatter(1, chosen, scores.softmax(-1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(x + (weights.unsqueeze(-1) * outputs).sum(1))


# ---------------------------------------------------------------------------------------------------------------------
# Fourier transforms, sampling, up-sampling


@_animal("fourier-operator", (1, 6, 6), count=5)
class _FourierOperator(nn.Module):
    """A Fourier neural operator: complex weights, held as pairs, multiply the lowest frequencies."""

    def __init__(self, classes):
        super().__init__()
        self.lift = nn.Conv2d(1, 3, 1)
        self.weight = nn.Parameter(0.5 * torch.randn(3, 3, 3, 2, 2))
        self.skip = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        x = self.lift(x)
        spectrum = torch.fft.rfft2(x)[:, :, :3, :2]
        mixed = torch.einsum("nihw,iohw->nohw", spectrum, torch.view_as_complex(self.weight))
        x = torch.fft.irfft2(F.pad(mixed, (0, 2, 0, 3)), s=(6, 6)) + self.skip(x)
        return self.head(F.gelu(x).mean((2, 3)))


@_animal("fourier-magnitudes", (1, 6, 6), count=5, loss="squared_error")
class _FourierMagnitudes(nn.Module):
    """Complex multiplication written as two real ones, then magnitudes."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.real, self.imaginary = (nn.Parameter(torch.randn(2, 6, 4)) for _ in range(2))
        self.head = nn.Linear(48, classes)

    def forward(self, x):
        z = torch.fft.rfft2(torch.tanh(self.conv(x)), norm="ortho")
        turned = torch.complex(
            z.real * self.real - z.imag * self.imaginary, z.real * self.imaginary + z.imag * self.real
        )
        return self.head(turned.abs().flatten(1))


@_animal("spatial-transformer", (1, 6, 6), count=5)
class _SpatialTransformer(nn.Module):
    """Samples the image on a grid that a network turns, with torch's own operations."""

    def __init__(self, classes):
        super().__init__()
        self.where = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 6))
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        turn = self.where(x).unflatten(1, (2, 3)) + torch.eye(2, 3, dtype=x.dtype)
        grid = F.affine_grid(turn, [len(x), 1, 6, 6], align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.head(torch.tanh(self.conv(x)).flatten(1))


@_animal("deformable-gather", (1, 5, 5), count=5)
class _DeformableGather(nn.Module):
    """Offsets by pixel, and bilinear sampling written with indices: the indices are constant almost everywhere."""

    def __init__(self, classes):
        super().__init__()
        self.offsets, self.features = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)
        self.head = nn.Linear(75, classes)

    def forward(self, x):
        rows = torch.arange(5, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"))
        where = (grid + self.offsets(x)).clamp(0.0, 3.999).flatten(2)
        corner = where.floor()
        part = (where - corner).unsqueeze(2)
        flat, (row, column) = self.features(x).flatten(2), corner.long().unbind(1)
        total = 0
        for down in (0, 1):
            for right in (0, 1):
                index = ((row + down) * 5 + column + right).unsqueeze(1).expand(-1, 3, -1)
                high = part[:, 0] if down else 1 - part[:, 0]
                wide = part[:, 1] if right else 1 - part[:, 1]
                total = total + flat.gather(2, index) * high * wide
        return self.head(F.silu(total).flatten(1))


@_animal("super-resolution", (2, 4, 4), loss="squared_error")
class _SuperResolution(nn.Module):
    """Squeeze and excitation, sub-pixel convolution, transposed convolution, bicubic up-sampling."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.shuffle, self.up = nn.PixelShuffle(2), nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1, dilation=2)
        self.head = nn.Conv2d(5, classes, 3)

    def forward(self, x):
        y = F.leaky_relu(self.conv(x), 0.1)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = torch.tanh(self.up(self.shuffle(y)))
        x = F.interpolate(x, size=y.shape[2:], mode="bicubic", align_corners=True)
        return self.head(torch.cat([x, y], dim=1)).flatten(2).mean(-1)


@_animal("convolutions-3d", (2, 6, 8), long=True)
class _Volumes(nn.Module):
    """Channels and an axis of the image as a volume: three and one dimensions, groups, dilation, instance norm."""

    def __init__(self, classes):
        super().__init__()
        self.volume, self.norm = (
            nn.Conv3d(2, 4, (2, 3, 2), groups=2, padding=(0, 1, 0)),
            nn.InstanceNorm3d(4, affine=True),
        )
        self.depthwise, self.line = nn.Conv3d(4, 8, 2, groups=4), nn.Conv1d(8, 5, 3, dilation=2, padding=2)
        self.line_norm = nn.InstanceNorm1d(5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        x = F.softplus(self.norm(self.volume(x.unflatten(2, (2, 3)).transpose(2, 3))))
        x = F.mish(self.depthwise(x).flatten(2))
        return self.head(F.max_pool1d(self.line_norm(self.line(x)), 2).logsumexp(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Parameters in unusual places


@_animal("embedded-pixels", (1, 4, 4), count=5)
class _EmbeddedPixels(nn.Module):
    """Embeddings of quantised pixels and of positions, and a bilinear layer."""

    def __init__(self, classes):
        super().__init__()
        self.values, self.bag = nn.Embedding(8, 4), nn.Embedding(8, 5)
        self.position = nn.Embedding(16, 4)
        self.bilinear = nn.Bilinear(4, 5, 6)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        index = (2 * x.flatten(1) + 4).long().clamp(0, 7)
        x = torch.tanh(self.values(index) + self.position.weight).mean(1)
        return self.head(torch.tanh(self.bilinear(x, self.bag(index).amax(1))))


@_animal("weight-and-spectral-norm", (2, 5, 5), long=True)
def _norms_of_weights(classes):
    return nn.Sequential(
        weight_norm(nn.Conv2d(2, 4, 3)),
        nn.ELU(),
        spectral_norm(nn.Conv2d(4, 4, 2)),
        nn.Flatten(),
        nn.Tanh(),
        torch.nn.utils.weight_norm(nn.Linear(16, 6)),
        nn.Sigmoid(),
        spectral_norm(nn.Linear(6, classes)),
    )


@_animal("orthogonal-weights", (1, 4, 4), long=True)
class _Orthogonal(nn.Module):
    """Orthogonal matrices as exponentials and as Cayley transforms of antisymmetric ones, and a triangular one."""

    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(16, 4)
        self.first, self.second, self.third = (nn.Parameter(0.5 * torch.randn(4, 4)) for _ in range(3))
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = torch.tanh(self.embed(x.flatten(1)))
        x = torch.tanh(x @ torch.matrix_exp(self.first - self.first.mT))
        skew, eye = self.second - self.second.mT, torch.eye(4, dtype=x.dtype)
        x = torch.tanh(x @ torch.linalg.solve(eye + skew, eye - skew))
        return self.head(x @ torch.linalg.cholesky(self.third @ self.third.mT + eye))


@_animal("hypernetwork", (1, 4, 4), count=5)
class _Hypernetwork(nn.Module):
    """A network makes another one's kernel and matrix: for all examples, and for each its own."""

    def __init__(self, classes):
        super().__init__()
        self.code = nn.Parameter(torch.randn(3))
        self.kernel, self.matrix = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 18)), nn.Linear(18, 12)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = torch.tanh(F.conv2d(x, self.kernel(self.code).view(2, 1, 3, 3), padding=1)[:, :, ::2, 1:])
        x = x.flatten(1)[:, :6]
        own = self.matrix(torch.cat([x, x.square(), x.sin()], dim=1)).unflatten(1, (6, 2))
        return self.head(torch.cat([torch.bmm(x.unsqueeze(1), own).squeeze(1), x[:, :4]], dim=1))


@_animal("low-rank-adapters", (1, 4, 4), count=5, long=True)
class _LowRank(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.base = nn.ModuleList([nn.Linear(16, 8), nn.Linear(8, 8)])
        self.down = nn.ParameterList([0.3 * torch.randn(2, 16), 0.3 * torch.randn(2, 8)])
        self.up = nn.ParameterList([torch.zeros(8, 2), torch.zeros(8, 2)])
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = x.flatten(1)
        for base, down, up in zip(self.base, self.down, self.up, strict=True):
            x = F.gelu(base(x) + 4.0 * (x @ down.T @ up.T))
        return self.head(x)


@_animal("splines", (1, 3, 3), count=5)
class _Splines(nn.Module):
    """A Kolmogorov–Arnold network: cubic B-splines on the edges, by de Boor's recursion."""

    class Layer(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.register_buffer("knots", torch.arange(-3.0, 9.0) * 0.4 - 1.2)
            self.base = nn.Linear(inputs, outputs, bias=False)
            self.weight = nn.Parameter(0.3 * torch.randn(outputs, inputs, 8))

        def forward(self, x):
            t, each = self.knots, x.unsqueeze(-1)
            basis = ((each >= t[:-1]) & (each < t[1:])).to(x.dtype)
            for k in (1, 2, 3):
                left = (each - t[: -k - 1]) / (t[k:-1] - t[: -k - 1]) * basis[..., :-1]
                basis = left + (t[k + 1 :] - each) / (t[k + 1 :] - t[1:-k]) * basis[..., 1:]
            return self.base(F.silu(x)) + torch.einsum("nib,oib->no", basis, self.weight)

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(self.Layer(9, 4), self.Layer(4, classes))

    def forward(self, x):
        return self.layers(torch.tanh(x.flatten(1)))


@_animal("siren", (1, 4, 4), count=5, loss="squared_error", long=True)
class _Siren(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, classes)])

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.sin(3.0 * layer(x))
        return self.layers[-1](x)


@_animal("radial-basis", (1, 4, 4), count=5, loss="squared_error")
class _RadialBasis(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(16, 3)
        self.centres, self.widths = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.rand(6))
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        distances = torch.cdist(self.embed(x.flatten(1)), self.centres)
        return self.head(torch.exp(-self.widths.exp() * distances.square()))


@_animal("cosine-similarity", (1, 5, 5), count=5, long=True)
class _CosineSimilarity(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.prototypes = nn.Conv2d(1, 2, 3, stride=2), nn.Parameter(torch.randn(classes, 8))
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        x = F.hardswish(self.conv(x)).flatten(1)
        return self.scale * F.cosine_similarity(x.unsqueeze(1), self.prototypes, dim=-1)


@_animal("capsules", (1, 5, 5), loss="squared_error")
class _Capsules(nn.Module):
    """Squashed vectors, routed by agreement in three rounds; scores are lengths."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.weight = nn.Parameter(0.4 * torch.randn(8, classes, 4, 3))

    @staticmethod
    def squashed(x):
        square = x.square().sum(-1, keepdim=True)
        return square / (1 + square) * x / (square + 1e-8).sqrt()

    def forward(self, x):
        x = self.squashed(self.conv(x).flatten(2).transpose(1, 2).reshape(len(x), 8, 3))
        votes = torch.einsum("nik,icjk->nicj", x, self.weight)
        logits = torch.zeros_like(votes[..., 0])
        for _ in range(3):
            out = self.squashed((logits.softmax(2).unsqueeze(-1) * votes).sum(1))
            logits = logits + (votes * out.unsqueeze(1)).sum(-1)
        return torch.linalg.vector_norm(out, dim=-1)


@_animal("highway-and-maxout", (1, 4, 4), count=5)
class _Highway(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed, self.change, self.gate = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.pieces, self.gated = nn.Linear(6, 12), nn.Linear(4, 8)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = self.embed(x.flatten(1))
        gate = torch.sigmoid(self.gate(x))
        x = torch.where(gate > 0.5, gate * F.relu6(self.change(x)), (1 - gate) * x)
        x = self.pieces(x).unflatten(1, (4, 3)).max(dim=-1).values
        return self.head(F.glu(self.gated(x), dim=1))


@_animal("sorted-features", (1, 4, 4), count=5, long=True)
class _Sorted(nn.Module):
    """Order statistics, medians, running maxima and products, distances between pairs, a determinant."""

    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(16, 9)
        self.head = nn.Linear(9 + 9 + 1 + 1 + 3, classes)

    def forward(self, x):
        x = torch.tanh(self.embed(x.flatten(1)))
        table = x.unflatten(1, (3, 3))
        features = [x.sort(dim=1).values, x.cummax(dim=1).values, x.median(dim=1, keepdim=True).values]
        features += [torch.linalg.det(table + 2 * torch.eye(3, dtype=x.dtype))[:, None], (table + 1.5).prod(-1)]
        return self.head(torch.cat(features, dim=1))


# ---------------------------------------------------------------------------------------------------------------------
# What else people write


@_animal("llama-like", (1, 4, 6), long=True)
class _Llama(nn.Module):
    """Rotary tables made under `no_grad` and outside of autocast, grouped queries, norms that square by hand."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.scale = nn.Linear(6, 8), nn.Parameter(torch.ones(8))
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.head = nn.Linear(8, classes)

    @torch.no_grad()
    def tables(self, x):
        with torch.autocast(x.device.type, enabled=False):
            angles = torch.arange(4, device=x.device, dtype=x.dtype)[:, None] / torch.tensor([1.0, 7.0]).to(x)
            angles = torch.cat([angles, angles], dim=-1)
            return angles.cos(), angles.sin()

    def forward(self, x):
        x = self.embed(x.squeeze(1))
        normed = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        cosine, sine = self.tables(normed)
        q, k, v = (layer(normed).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        q, k = (z * cosine + torch.cat([-z[..., 2:], z[..., :2]], dim=-1) * sine for z in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head((x + mixed.transpose(1, 2).reshape(x.shape))[:, -1])


@_animal("encoder-decoder", (1, 4, 6), loss="squared_error", long=True)
class _EncoderDecoder(nn.Module):
    """torch's decoder layer with masks of both kinds; learned queries."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), 1, nn.LayerNorm(6), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoderLayer(6, 2, 7, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 3, 6))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        x = x.squeeze(1)
        absent = torch.zeros(len(x), 4, dtype=torch.bool, device=x.device)
        absent[:, 3] = True
        memory = self.encoder(x, src_key_padding_mask=absent)
        mask = nn.Transformer.generate_square_subsequent_mask(3, device=x.device, dtype=x.dtype)
        queries = self.queries.repeat(len(x), 1, 1)
        return self.head(self.decoder(queries, memory, tgt_mask=mask, memory_key_padding_mask=absent)).squeeze(-1)


@_animal("state-space", (1, 5, 4), long=True)
class _StateSpace(nn.Module):
    """A selective state-space layer: decays that depend on the input, a causal convolution, a scan in a loop."""

    def __init__(self, classes):
        super().__init__()
        self.inward, self.conv = nn.Linear(4, 12), nn.Conv1d(6, 6, 3, groups=6, padding=2)
        self.step, self.both = nn.Linear(6, 6), nn.Linear(6, 6)
        self.logarithm, self.skip = nn.Parameter(torch.rand(6, 3)), nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x, gate = self.inward(x.squeeze(1)).chunk(2, dim=-1)
        x = F.silu(self.conv(x.mT)[..., :5].mT)
        step = F.softplus(self.step(x)).unsqueeze(-1)
        into, out = self.both(x).chunk(2, dim=-1)
        decay = torch.exp(-step * self.logarithm.exp())
        state, outputs = torch.zeros_like(decay[:, 0]), x.new_empty(x.shape)
        for t in range(5):
            state = decay[:, t] * state + step[:, t] * x[:, t].unsqueeze(-1) * into[:, t].unsqueeze(1)
            outputs[:, t] = (state * out[:, t].unsqueeze(1)).sum(-1)
        return self.head(((outputs + self.skip * x) * F.silu(gate)).mean(1))


@_animal("involution", (2, 5, 5), long=True)
class _Involution(nn.Module):
    """Kernels by pixel that meet unfolded windows, and folding back."""

    def __init__(self, classes):
        super().__init__()
        self.kernels, self.values = nn.Conv2d(2, 9, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(100, classes)

    def forward(self, x):
        windows = F.unfold(self.values(x), 3, padding=1).unflatten(1, (4, 9))
        weighted = windows * self.kernels(x).flatten(2).softmax(1).unsqueeze(1)
        return self.head(torch.tanh(F.fold(weighted.flatten(1, 2), (5, 5), 3, padding=1)).flatten(1))


@_animal("segnet", (2, 6, 6), loss="squared_error", long=True)
class _SegNet(nn.Module):
    """Unpooling at the places of the maxima, and other poolings."""

    def __init__(self, classes):
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3 * 9 + 3 * 4, classes)

    def forward(self, x):
        low, where = F.max_pool2d(self.down(x), 2, return_indices=True)
        x = self.out(torch.tanh(F.max_unpool2d(F.hardtanh(self.up(low)), where, 2)) + 1.5)
        return self.head(
            torch.cat([F.lp_pool2d(x.sigmoid(), 3.0, 2).flatten(1), F.adaptive_max_pool2d(x, 2).flatten(1)], 1)
        )


@_animal("soft-codebook", (3, 4, 4), long=True)
class _SoftCodebook(nn.Module):
    """Distances of every pixel to a codebook, in both of torch's ways, and between pairs of features."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.codes = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(5, 4))
        self.others = nn.Parameter(torch.randn(30, 4))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        near = torch.cdist(x, self.codes.expand(len(x), -1, -1), p=1.0).neg().softmax(-1) @ self.codes
        far = torch.cdist(x, self.others).neg().softmax(-1) @ self.others
        return self.head(torch.cat([near.mean(1), (far * F.pairwise_distance(x, near, keepdim=True)).mean(1)], dim=1))


@_animal("spectral-features", (1, 4, 4), long=True)
class _SpectralFeatures(nn.Module):
    """Eigenvalues, singular values, a QR decomposition and a logarithmic determinant."""

    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(16, 9)
        self.head = nn.Linear(3 + 3 + 1 + 9, classes)

    def forward(self, x):
        table = self.embed(x.flatten(1)).unflatten(1, (3, 3))
        symmetric = table @ table.mT + torch.diag(torch.arange(1.0, 4.0)).to(x)
        features = [torch.linalg.eigvalsh(symmetric), torch.linalg.svdvals(table), torch.logdet(symmetric)[:, None]]
        return self.head(torch.cat([*features, torch.linalg.qr(symmetric)[0].flatten(1)], dim=1))


@_animal("neural-ode", (1, 4, 4), loss="squared_error", long=True)
class _NeuralODE(nn.Module):
    """Three steps of Runge and Kutta, then a fixed point by iteration."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.field = nn.Linear(16, 5), nn.Sequential(nn.Linear(6, 5), nn.Softsign(), nn.Linear(5, 5))
        self.inside, self.head = nn.utils.parametrizations.orthogonal(nn.Linear(5, 5)), nn.Linear(5, classes)

    def slope(self, t, x):
        return self.field(torch.cat([x, torch.full_like(x[:, :1], t)], dim=1))

    def forward(self, x):
        x = self.embed(x.flatten(1))
        for t in (0.0, 0.3, 0.6):
            a = self.slope(t, x)
            b = self.slope(t + 0.15, x + 0.15 * a)
            c = self.slope(t + 0.15, x + 0.15 * b)
            x = x + 0.05 * (a + 2 * b + 2 * c + self.slope(t + 0.3, x + 0.3 * c))
        fixed = torch.zeros_like(x)
        for _ in range(3):
            fixed = torch.tanh(0.5 * self.inside(fixed) + x)
        return self.head(fixed)


@_animal("in-place", (1, 4, 4))
class _InPlace(nn.Module):
    """Changes in place, on slices, and activations that are seldom used."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.hidden = nn.Linear(16, 12), nn.Linear(12, 12)
        self.slopes = nn.PReLU(6)
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        x = self.embed(x.flatten(1)).clone()
        x[:, :3] *= torch.sigmoid(x[:, 3:6])
        x[:, 6:].clamp_(min=-0.5).add_(x[:, :6], alpha=0.5)
        x = self.hidden(x)
        parts = [F.hardshrink(x[:, :2], 0.1), F.softshrink(x[:, 2:4], 0.1), F.tanhshrink(x[:, 4:6])]
        parts += [
            self.slopes(x[:, 6:]),
        ]
        x = torch.cat(parts, dim=1)
        return self.head(torch.erf(x) + torch.special.expit(x) * torch.atan2(x, 1 + x.abs()) + F.rrelu(x))


@_animal("energy-gradient", (1, 3, 3), count=5, long=True)
class _EnergyGradient(nn.Module):
    """The features are the derivative of a network's energy, by torch.func."""

    def __init__(self, classes):
        super().__init__()
        self.first, self.second = nn.Linear(9, 6), nn.Linear(6, 1)
        self.head = nn.Linear(9, classes)

    def energy(self, x):
        return self.second(torch.tanh(self.first(x))).sum()

    def forward(self, x):
        return self.head(torch.func.grad(self.energy)(x.flatten(1)))


@_animal("graph-attention", (1, 4, 4), long=True)
class _GraphAttention(nn.Module):
    """Pixels as nodes, messages along edges by index: gathered, scattered, normalised by segment."""

    def __init__(self, classes):
        super().__init__()
        pixels = torch.arange(16).view(4, 4)
        right = torch.stack([pixels[:, :-1].flatten(), pixels[:, 1:].flatten()])
        down = torch.stack([pixels[:-1].flatten(), pixels[1:].flatten()])
        edges = torch.cat([right, down], dim=1)
        self.register_buffer("edges", torch.cat([edges, edges.flip(0)], dim=1))
        self.lift, self.score, self.head = nn.Linear(1, 4), nn.Linear(8, 1), nn.Linear(4, classes)

    def forward(self, x):
        x = torch.tanh(self.lift(x.flatten(1).unsqueeze(-1)))
        source, target = self.edges
        scores = F.leaky_relu(self.score(torch.cat([x[:, source], x[:, target]], dim=-1)), 0.2)
        weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
        sums = torch.zeros_like(x[..., :1]).index_add(1, target, weights)
        messages = weights / sums[:, target] * x[:, source]
        index = target[None, :, None].expand_as(messages)
        pooled = x + torch.zeros_like(x).scatter_add(1, index, messages)
        high = torch.zeros_like(x).scatter_reduce(1, index, messages, "amax", include_self=False)
        return self.head((pooled * high).mean(1))


@_animal("embedding-bag", (1, 4, 4), long=True)
class _EmbeddingBag(nn.Module):
    """torch has no second derivative of it."""

    def __init__(self, classes):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(8, 5, mode="mean"), nn.Linear(5, classes)

    def forward(self, x):
        return self.head(torch.tanh(self.bag((2 * x.flatten(1) + 4).long().clamp(0, 7))))


class _Square(torch.autograd.Function):
    """As written before torch.func: its context is set up in `forward`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@torch.jit.script
def _swish(x: torch.Tensor, slope: float) -> torch.Tensor:
    return x * torch.sigmoid(slope * x)


@_animal("opaque-functions", (1, 4, 4))
class _OpaqueFunctions(nn.Module):
    """What torch.func does wrongly or not at all: TorchScript, checkpointing, an own derivative, a compiled part."""

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, 6) for i in (16, 6, 6))
        self.compiled = torch.compile(nn.Softsign(), backend="eager")
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = _swish(self.layers[0](x.flatten(1)), 1.5)
        x = checkpoint(lambda z: torch.sin(self.layers[1](z)), x, use_reentrant=False)
        return self.head(self.compiled(_Square.apply(self.layers[2](x))))


@_animal("conditional", (1, 4, 4), long=True)
class _Conditional(nn.Module):
    """A branch by the data that can be exported, but is not the same function everywhere."""

    def __init__(self, classes):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 5), nn.Linear(5, classes)

    def forward(self, x):
        x = self.embed(x.flatten(1))
        return self.head(torch.cond(x[0, 0] > 10, torch.sin, torch.tanh, (x,)))
