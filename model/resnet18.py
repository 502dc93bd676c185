"""ResNet-18 for 32 x 32 images, He et al. 2015, arXiv 1512.03385: 3 x 3 stem, no max-pool."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet18"]

TINY = {"width": 2}  # for tests


class ResNet18(nn.Module):
    """images (batch, 3, 32, 32) -> logits (batch, num_classes).

    Four stages of two basic blocks, width * (1, 2, 4, 8) channels, bias-free convolutions, global
    average pool, one linear head; 11,173,962 parameters in 62 tensors at width 64 and 10 classes.
    Raises ValueError for a size below 1.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        if num_classes < 1 or width < 1:
            raise ValueError(f"num_classes and width must be >= 1, got {num_classes}, {width}")
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage in range(4):
            stride = 1 if stage == 0 else 2
            blocks.append(BasicBlock(channels[stage], channels[stage + 1], stride))
            blocks.append(BasicBlock(channels[stage + 1], channels[stage + 1], 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images; in channels-last layout on CUDA, for its tensor cores."""
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.stem(images)))
        x = self.blocks(x)
        return self.head(x.mean(dim=(2, 3)))

    def roles(self) -> dict[str, str]:
        """Parameter name -> "hidden" (every convolution), "head" or "vector"."""
        return {name: "head" if name == "head.weight" else "hidden" if p.ndim == 4 else "vector"
                for name, p in self.named_parameters()}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, a 1 x 1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                                          nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
