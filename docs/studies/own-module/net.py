"""A network of one's own, written without a thought of skips."""

from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x)).relu()
        return self.second_norm(self.second(x)).relu()


class Net(nn.Module):
    """`num_classes` and `in_channels` come from the data, `depth` from the study: a block has two layers."""

    def __init__(self, num_classes: int, in_channels: int, depth: int = 8, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth // 2)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images).relu())
        return self.head(x.mean(dim=(2, 3)))
