"""The loss in Lightning, which moves and saves its class weights with the module.

pip install lightning
python examples/lightning_module.py
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from merc_kernels import FocalContrastiveLoss, class_balanced_weights


class Contrastive(lightning.LightningModule):
    """An encoder that the focal contrastive loss trains."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.criterion = FocalContrastiveLoss(temperature=0.1, class_weights=class_balanced_weights(counts))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        inputs, labels = batch
        loss = self.criterion(self.encoder(inputs), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Over all parameters, those of a learned temperature too."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(epochs: int = 2) -> None:
    """Train on points around three centres."""
    lightning.seed_everything(0)
    labels = torch.arange(3).repeat_interleave(torch.tensor([200, 100, 20]))
    data = TensorDataset(torch.randn(3, 32)[labels] + torch.randn(len(labels), 32), labels)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False
    )
    trainer.fit(Contrastive([200, 100, 20]), DataLoader(data, batch_size=64, shuffle=True))
    print(f"loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
