"""A class as a context of one token."""

from torch import Tensor, nn

from models.conditioners import Conditioner


class ClassToken(Conditioner):
    """A learned vector for each class, attended to like one word (LDM App. E.2.1, class-conditional ImageNet).

    classes: how many, the one that stands for none included (1001 in the published model). width: of the vectors.
    """

    part = "context"

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(classes, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Context float [B, 1, width] of labels int64 [B]; each 0 to classes - 1."""
        return self.embedding(labels)[:, None]
