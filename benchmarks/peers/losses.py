"""The losses and teacher targets of `torch_step.py`. Logits and targets are [rows, K] in f32, rows crop by crop."""

import torch
import torch.nn.functional as F

STUDENT_TEMPERATURE = 0.1


def sinkhorn(logits, temperature, iterations=3):
    """Sinkhorn-Knopp targets. The matrix stays as it is: only the factors of its rows and columns change, so that an
    iteration is two matrix-vector products. The largest logit is taken off first, which cancels and keeps exp finite.
    Outside of autocast, which would round the matrix to bf16 six times: the published sums are in f32."""
    with torch.autocast(logits.device.type, enabled=False):
        rows, prototypes = logits.shape
        logits = logits.float()
        q = torch.exp_((logits - logits.max()).div_(temperature))
        of_rows = q.new_full((rows,), 1 / rows)
        for _ in range(iterations):
            of_prototypes = 1 / (prototypes * (of_rows @ q))
            of_rows = 1 / (rows * (q @ of_prototypes))
        return q.mul_(of_prototypes).mul_((rows * of_rows)[:, None])


class Centre:
    """Softmax of logits minus their running mean; a batch counts towards the mean from the next step on."""

    def __init__(self, prototypes, device):
        self.centre = torch.zeros(prototypes, device=device)

    def targets(self, logits, temperature):
        targets = torch.softmax((logits - self.centre).div_(temperature), dim=-1)
        self.centre = torch.lerp(self.centre, logits.mean(0), 0.1)
        return targets


def dino(targets, global_logits, local_logits):
    """The mean cross-entropy over all pairs of a teacher crop and another student crop. `targets` and `global_logits`
    are [2 B, K], `local_logits` [L B, K]; two rows of one crop's pair are B apart. Returns the pairs of two global
    crops and those with a local crop, both as shares of the whole."""
    first, second = targets.chunk(2)
    batch = len(first)
    pairs = 2 + 2 * (len(local_logits) // batch)
    swapped = torch.cat([second, first])
    of_global = -(swapped * F.log_softmax(global_logits / STUDENT_TEMPERATURE, dim=-1)).sum()
    of_local = F.log_softmax(local_logits / STUDENT_TEMPERATURE, dim=-1).view(-1, batch, targets.shape[1])
    of_local = -((first + second) * of_local).sum()
    return of_global / (batch * pairs), of_local / (batch * pairs)


def ibot(targets, logits, weights, crops):
    """Cross-entropy of the masked patches, [M, K] each; `weights` [M] is one over the number of masked patches of the
    row's crop, `crops` the number of global crops, masked or not."""
    entropies = -(targets * F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)).sum(-1)
    return (entropies * weights).sum() / crops


def koleo(features):
    """Minus the mean log distance of each row of [B, D] to the nearest other one, on the unit sphere, in f32."""
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), eps=1e-8, dim=-1)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
        return -torch.log(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).mean()


def contrast(queries, keys, queue, temperature):
    """InfoNCE: each row of `queries` [B, D] against its own of `keys` and all of `queue` [K, D]."""
    own = (queries * keys).sum(-1, keepdim=True)
    logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
