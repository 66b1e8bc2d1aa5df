"""The loss in the Trainer of Hugging Face: one method, with cross entropy beside it.

pip install transformers accelerate
python examples/hugging_face_trainer.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from merc_kernels import FocalContrastiveLoss


class ContrastiveTrainer(Trainer):
    """A Trainer whose loss is cross entropy and the focal contrastive loss of the pooled states."""

    contrastive = FocalContrastiveLoss(temperature=0.1)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The loss of a batch."""
        outputs = model(**inputs, output_hidden_states=True)
        embeddings = outputs.hidden_states[-1][:, 0]  # of [CLS]
        loss = outputs.loss + 0.3 * self.contrastive(embeddings, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def main(steps: int = 60) -> None:
    """Train a tiny BERT, from scratch, on sentences whose first word tells the label."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    words = torch.randint(3, 50, (128, 8))
    words[:, 0] = torch.arange(128) % 3
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0]} for row in words]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=5e-3,
            per_device_train_batch_size=32,
            report_to=[],
            save_strategy="no",
        )
        trainer = ContrastiveTrainer(BertForSequenceClassification(config), arguments, train_dataset=data)
        trainer.train()
        print(f"loss {trainer.evaluate(data)['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
