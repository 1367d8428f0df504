"""A tiny BERT classifier from its configuration alone, and made-up sentences: hubs are out of reach."""

import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 200


def get_model() -> BertForSequenceClassification:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, num_labels=2, **shape))


def load_data(partition_id: int, num_partitions: int) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(partition_id)
    tokens = torch.randint(0, VOCABULARY, (80, 16), generator=generator)
    rows = [{"input_ids": row, "labels": (row[0] % 2)} for row in tokens]
    return DataLoader(rows[:64], batch_size=16), DataLoader(rows[64:], batch_size=16)


def train_fn(net, loader, epochs: int) -> None:
    optimizer = AdamW(net.parameters(), lr=5e-4)
    net.train()
    for _ in range(epochs):
        for batch in loader:
            net(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def test_fn(net, loader) -> tuple[float, float]:
    net.eval()
    loss, right, seen = 0.0, 0, 0
    with torch.no_grad():
        for batch in loader:
            out = net(**batch)
            loss += out.loss.item()
            right += int((out.logits.argmax(-1) == batch["labels"]).sum())
            seen += len(batch["labels"])
    return loss / seen, right / seen
