#!/usr/bin/env python3
"""Writes an ONNX file that macula did not make, to be a teacher: a residual network in PyTorch, exported by PyTorch.

    make_torch_teacher.py OUT.onnx [--size 64] [--classes 10] [--width 32] [--logits] [--train FOLDER --steps 200]

The file has one input `images` [batch, 3, SIZE, SIZE], normalised by ImageNet's mean and deviation, and one output
`embedding` [batch, 8 WIDTH], or with --logits `scores` [batch, CLASSES]: names that macula does not know, so that it takes
the first vector an image. The weights are random (seed 0), which is enough to show that the file works; --train fits them
to an IDX folder (`train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz`) first. Then:

    macula distill --teacher OUT.onnx --data SRC --out RUN --recipe distill-features
    macula distill --teacher OUT.onnx --data SRC --out RUN --recipe distill-logits --set distill.onnx_output=logits

Needs: torch, onnx, onnxscript; numpy for --train.
"""

import argparse
import gzip
import pathlib

import torch
from torch import nn
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3 x 3 convolutions and the way around them (He et al. 2016)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.around = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.around(x))


class Network(nn.Module):
    """Four stages of two blocks, as ResNet-18 has them, and a linear classifier."""

    def __init__(self, width, classes, logits):
        super().__init__()
        stages = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for stage in range(4):
            outputs = width << stage
            stages += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
            inputs = outputs
        self.body = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        self.logits = logits

    def forward(self, images):
        embedding = self.body(images).mean((2, 3))
        return self.classifier(embedding) if self.logits else embedding


def idx(path):
    """The array of a gzipped IDX file of bytes."""
    import numpy as np

    data = gzip.decompress(path.read_bytes())
    dims = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * len(dims)).reshape(dims).copy())


def train(network, folder, size, steps):
    """Fits the classifier on random batches with Adam."""
    images = idx(folder / "train-images-idx3-ubyte.gz")
    labels = idx(folder / "train-labels-idx1-ubyte.gz").long()
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    network.train()
    for step in range(steps):
        rows = torch.randint(len(images), (128,))
        batch = images[rows].float().div(255).unsqueeze(1).expand(-1, 3, -1, -1)
        batch = functional.interpolate(batch, (size, size), mode="bilinear")
        scores = network.classifier(network.body((batch - mean) / std).mean((2, 3)))
        loss = functional.cross_entropy(scores, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--logits", action="store_true")
    parser.add_argument("--train", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    network = Network(args.width, args.classes, args.logits)
    if args.train:
        train(network, args.train, args.size, args.steps)
    network.eval()
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, args.size, args.size),),
        str(args.out),
        input_names=["images"],
        output_names=["scores" if args.logits else "embedding"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
        dynamo=True,
    )
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
