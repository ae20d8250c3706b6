"""The PyTorch equivalent: the training loop of https://github.com/HobbitLong/RepDistiller, with WSL for its loss."""

import torch
from torch.nn import functional

from benchmarks import torch_networks
from benchmarks.case import ALPHA, LEARNING_RATE, MOMENTUM, TEMPERATURE, WEIGHT_DECAY


def loss(student_logits, teacher_logits, labels):
    """The total of WSL, as its authors write it: the soft term is the cross-entropy."""
    hard = functional.cross_entropy(student_logits, labels)
    with torch.no_grad():
        ratio = functional.cross_entropy(student_logits, labels, reduction="none") / (
            functional.cross_entropy(teacher_logits, labels, reduction="none") + 1e-7
        )
        omega = 1 - torch.exp(-torch.relu(ratio))
    soft_labels = functional.softmax(teacher_logits / TEMPERATURE, dim=1)
    soft = -torch.sum(soft_labels * functional.log_softmax(student_logits / TEMPERATURE, dim=1), dim=1)
    return hard + ALPHA * TEMPERATURE**2 * torch.mean(omega * soft)


def optimizer(student):
    """SGD with the decay of the reference."""
    return torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def step(teacher, student, update, images, labels):
    """One update; the loss and the top-1 and top-5 accuracy as numbers, as the reference logs them."""
    student.train()
    student_logits = student(images)
    with torch.no_grad():
        teacher_logits = teacher(images)
    total = loss(student_logits, teacher_logits, labels)
    found = student_logits.topk(min(5, student_logits.shape[1]), dim=1).indices == labels[:, None]
    logged = [total.item(), found[:, 0].float().mean().item(), found.any(1).float().mean().item()]
    update.zero_grad()
    total.backward()
    update.step()
    return logged


def wsl(case):
    """The arm: channels last, which is the faster layout, and as many threads as PyTorch takes by itself."""
    teacher, student = (
        torch_networks.build(name, case.classes).to(memory_format=torch.channels_last)
        for name in (case.teacher, case.student)
    )
    teacher.eval()
    update = optimizer(student)
    batches = [
        (torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last), torch.from_numpy(y))
        for x, y in zip(*case.arrays())
    ]
    batches = [(images, labels.long()) for images, labels in batches]

    def run(steps):
        for number in range(steps):
            step(teacher, student, update, *batches[number % len(batches)])

    return run
