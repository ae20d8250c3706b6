"""The runs that studies need at each scale."""

import dataclasses

import pytest

from keras_wsl.training import config
from keras_wsl.training.build_losses import build_main_losses
from keras_wsl.training.recipes import get_recipe
from reproduction import presets, studies
from reproduction.variants import CIFAR100, TO_40_1
from tests.train.reproduction.common import CPU, FULL, SMOKE, plan


@pytest.mark.parametrize("scales", [SMOKE, CPU, FULL], ids=["smoke", "cpu", "paper"])
@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_run_is_one_that_trains(name, scales):
    teachers, students = plan(name, scales)
    assert students
    for run in students:
        recipe = get_recipe(run.config)
        assert bool(run.teacher) == recipe.needs_teacher
        if run.teacher:
            assert teachers[run.teacher].config.student == run.config.teacher
            assert teachers[run.teacher].config.method == "none"
    for wanted in {run.config for run in students if run.config.method != "crd"}:  # Whose classes are the data's.
        build_main_losses(wanted, None)  # Settings that do not fit are refused.


def test_a_run_is_the_same_in_every_table_and_for_every_seed():
    runs = {
        (name, run.variant.name, run.config.seed): run.name
        for name in ("1", "2", "3", "5", "6", "7", "10")
        for run in plan(name, CPU, seeds=2)[1]
    }
    names = [("1", "KD, τ = 4"), ("2", "KD"), ("5", "KD"), ("6", "KD, τ = 4")]
    assert len({runs[*name, 0] for name in names}) == 1
    assert runs["5", "WSL", 0] == runs["6", "WSL, τ = 4", 0] and runs["3", "WSL", 0] == runs["10", "α = 2.25", 0]
    left_out = {runs["2", "KD without regularization samples", 0], runs["5", "KD, regularization samples left out", 0]}
    assert len(left_out) == 1
    assert runs["5", "KD", 0].removesuffix("-0") == runs["5", "KD", 1].removesuffix("-1")
    assert len(set(runs.values())) < len(runs) and runs["5", "KD", 0] != runs["5", "WSL", 0]
    smoothed = runs["6", "KD, τ = 4, smoothed teacher", 0]
    assert smoothed == runs["1", "KD, τ = 4, smoothed teacher", 0] != runs["6", "KD, τ = 4", 0]
    # In large studies students are trained less; by the paper's recipe all are alike.
    assert runs["7", "KD", 0] == runs["3", "KD", 0] != runs["5", "KD", 0]
    of_paper = {(name, run.variant.name): run.name for name in ("2", "5", "7") for run in plan(name, FULL)[1]}
    assert of_paper["7", "KD"] == of_paper["5", "KD"]
    left_out = of_paper["2", "KD without regularization samples"]
    assert left_out == of_paper["7", "KD, 100 % of regularization samples left out"]


def test_what_is_cut_in_a_study():
    deviations = {
        name: dict(row[:2] for row in presets.get_deviations(studies.STUDIES[name], CPU[CIFAR100]))
        for name in ("5", "8")
    }
    assert deviations["5"]["epochs"].startswith("students 32, teachers 8;") and deviations["8"]["epochs"].startswith(
        "8;"
    )
    assert "CRD's negatives" in deviations["8"] and "CRD's negatives" not in deviations["5"]
    wanted = {name: plan(name, CPU)[1][0].config for name in deviations}
    assert {name: (one.epochs, one.num_views) for name, one in wanted.items()} == {"5": (32, 8), "8": (8, 0)}
    # Both use the eight views of one file.
    assert not presets.get_deviations(studies.STUDIES["5"], FULL[CIFAR100])


def test_a_name_is_of_what_a_run_does():
    wanted = CPU[CIFAR100].recipe
    one = presets.run_name(wanted)
    for place in ({"seed": 3}, {"teacher_weights": "a.keras"}, {"soft_labels": "there"}):
        assert presets.run_name(dataclasses.replace(wanted, **place)) == one
    for other in ({"epochs": 21}, {"alpha": 1.0}, {"nesterov": True}):
        assert presets.run_name(dataclasses.replace(wanted, **other)) != one
    assert presets.run_name(wanted, teacher="teacher-a") != presets.run_name(wanted, teacher="teacher-b")
    students = [config.MultiNLIConfig(student=f"{folder}/minilm") for folder in ("here", "there")]
    assert len({presets.run_name(one) for one in students}) == 1 and "minilm-" in presets.run_name(students[0])
    # A name does not change with the code: it is in files.
    assert presets.run_name(config.Config(student="resnet8", method="none", epochs=3)) == "resnet8-none-2066c4"


def test_the_paper_has_its_own_networks_and_the_cpu_their_stand_ins():
    students = {(run.config.teacher, run.config.student) for run in plan("3", FULL)[1] if run.teacher}
    assert students == {variant.pair for variant in studies.STUDIES["3"].variants}
    light = {run.config.student: run.config.learning_rate for run in plan("3", FULL)[1]}
    assert light["shufflenet_v1"] == 0.01 and light["resnet20"] == 0.05
    runs = plan("3", CPU)[1]
    assert {run.config.student for run in runs} == {"resnet8"} and len({run.variant.name for run in runs}) == len(runs)
    assert {run.variant.pair for run in runs} == {TO_40_1}  # The first of the pairs that have one stand-in.
    wanted = FULL[CIFAR100].recipe
    assert (wanted.epochs, wanted.decay_epochs, wanted.max_train_examples) == (240, (150, 180, 210), 0)
    assert presets.scale_decay_epochs(240) == (150, 180, 210) and presets.scale_decay_epochs(16) == (10, 12, 14)
    assert presets.scale_decay_epochs(1) == ()


def test_teachers_of_their_study():
    teachers, students = plan("6", CPU, seeds=3)
    assert sorted(run.config.label_smoothing for run in teachers.values()) == [0.0, 0.1]
    assert {run.config.max_train_examples for run in teachers.values()} == {0}
    for run in students:
        assert teachers[run.teacher].config.label_smoothing == (0.1 if run.variant.label_smoothed_teacher else 0.0)
    # The one whose checkpoints teach online is the teacher of all other tables too; a smoothed one keeps none.
    (teacher,) = plan("online", CPU)[0].values()
    assert {name: run.config.checkpoint_every for name, run in teachers.items()} == {
        name: int(name == teacher.name) for name in teachers
    }
    kept = {run.config.student: run.config.checkpoint_every for run in plan("3", FULL)[0].values()}
    assert kept == {"wrn_40_2": 0, "resnet56": 1, "resnet110": 0, "resnet32x4": 0}


def test_soft_labels_replace_a_teacher_of_logits_alone():
    replays = {run.config.method: run.uses_cached_logits for run in [*plan("8", CPU)[1], *plan("2", CPU)[1]]}
    supported = {"none": False, "kd": True, "masked_kd": True, "dkd": True, "lskd": True, "dist": True}
    assert replays == {**supported, **dict.fromkeys(("rkd", "at", "sp", "fitnet", "crd"), False)}
    assert [run.uses_cached_logits for run in plan("online", CPU)[1]] == [False, True, True, False, False]
    assert not any(run.uses_cached_logits for run in plan("2", FULL)[1])
    # What another run of the seed has not: a teacher in training mode, other crops.
    recipes_of_wsl = {run.variant.name: run.uses_cached_logits for run in plan("recipe", CPU)[1]}
    assert [name for name, replayed in recipes_of_wsl.items() if replayed] == ["as CRD's", "Nesterov's momentum"]


@pytest.mark.parametrize("scales", [SMOKE, CPU, FULL], ids=["smoke", "cpu", "paper"])
def test_contrast_has_fewer_negatives_than_there_are_examples_of_other_classes(scales):
    wanted = next(run.config for run in plan("8", scales)[1] if run.config.method == "crd")
    negatives = int(dict(item.split("=") for item in wanted.loss_kwargs).get("negatives", 16384))
    classes = 10 if scales is SMOKE else 100
    assert negatives <= (wanted.max_train_examples or 50_000) * (1 - 1 / classes)
