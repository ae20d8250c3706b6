"""The papers' tables: what is planned, shared and kept, what a page says, and whole tables on a few digits."""

import dataclasses
import itertools
import math
import types

import pytest
from scipy import stats

import jobs
import tables
from evidence import budgets, page, paper
from evidence.estimates import Estimator, format_seconds
from evidence.run_store import RunStore
from keras_wsl import data
from keras_wsl.training import artifacts, config, recipes
from tests.common import bright_splits
from tests.train.test_bias_variance import processes
from tests.train.test_imagenet import tree
from tests.train.test_multinli import folder, preset

assert processes and tree and folder and preset  # Fixtures.
SMOKE, CPU, FULL = (make("preset") for make in (budgets.smoke, budgets.cpu, budgets.full))


def _plan(name, scales, seeds=1):
    study = paper.STUDIES[name]
    return budgets.plan(study, scales[study.data], seeds)


# The papers' numbers.


@pytest.mark.parametrize("name", paper.STUDIES)
def test_a_study_names_its_own_arms(name):
    study = paper.STUDIES[name]
    for _, arms in itertools.groupby(sorted(study.arms, key=lambda arm: arm.pair), key=lambda arm: arm.pair):
        names = [arm.name for arm in arms]
        assert len(set(names)) == len(names)
    names = {arm.name for arm in study.arms}
    assert {name for claim in study.claims for name in claim[:2]} <= names and study.over in names
    assert all(arm.paper is None or 40 < arm.paper < 80 for arm in study.arms)


def test_numbers_of_the_papers():
    """A few of each table, read again from the paper's."""
    found = {(name, arm.pair, arm.name): arm.paper for name, study in paper.STUDIES.items() for arm in study.arms}
    assert found["3", paper.TO_RESNET20, "WSL"] == 72.15 and found["3", ("resnet32x4", "resnet8x4"), "CRD"] == 75.51
    assert ("3", paper.TO_40_1, "FSP") not in found and found["4", paper.TO_MOBILENET, "Overhaul"] == 71.33
    assert found["7", paper.TO_16_2, "WSL, 25 % of other samples left out"] == 75.53
    assert found["5", paper.TO_16_2, "WSL, regularization samples left out"] == 75.35
    assert found["8", paper.TO_40_1, "RKD + WSL's weights"] == 73.89 and found["8", paper.TO_40_1, "DKD"] is None
    assert found["9", paper.TO_40_1, "sigmoid, α = 3"] == 73.97 and found["11", paper.BERT, "WSL"] == 76.28
    # Several tables have the same run: their numbers must be the same, where the paper's are.
    assert {
        found["2", paper.TO_16_2, "KD"],
        found["5", paper.TO_16_2, "KD"],
        found["6", paper.TO_16_2, "KD, τ = 4"],
    } == {74.92}
    assert found["10", paper.TO_40_1, "α = 2.25"] == found["3", paper.TO_40_1, "WSL"]


# What is planned.


@pytest.mark.parametrize("scales", [SMOKE, CPU, FULL], ids=["smoke", "cpu", "paper"])
@pytest.mark.parametrize("name", paper.STUDIES)
def test_every_run_is_one_that_trains(name, scales):
    teachers, students = _plan(name, scales)
    assert students
    for run in students:
        recipe = recipes.of(run.wanted)
        assert bool(run.teacher) == recipe.needs_teacher
        if run.teacher:
            assert teachers[run.teacher].wanted.student == run.wanted.teacher
            assert teachers[run.teacher].wanted.method == "none"
    for wanted in {run.wanted for run in students if run.wanted.method != "crd"}:  # Whose classes are the data's.
        recipes.main_losses(wanted, None)  # Settings that do not fit are refused.


def test_a_run_is_the_same_in_every_table_and_for_every_seed():
    runs = {
        (name, run.arm.name, run.wanted.seed): run.name
        for name in ("1", "2", "3", "5", "6", "7", "10")
        for run in _plan(name, CPU, seeds=2)[1]
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
    of_paper = {(name, run.arm.name): run.name for name in ("2", "5", "7") for run in _plan(name, FULL)[1]}
    assert of_paper["7", "KD"] == of_paper["5", "KD"]
    left_out = of_paper["2", "KD without regularization samples"]
    assert left_out == of_paper["7", "KD, 100 % of regularization samples left out"]


def test_what_is_cut_in_a_study():
    told = {
        name: dict(row[:2] for row in budgets.cuts(paper.STUDIES[name], CPU[paper.CIFAR100])) for name in ("5", "8")
    }
    assert told["5"]["epochs"].startswith("students 32, teachers 8;") and told["8"]["epochs"].startswith("8,")
    assert "CRD's negatives" in told["8"] and "CRD's negatives" not in told["5"]
    wanted = {name: _plan(name, CPU)[1][0].wanted for name in told}
    assert {name: (one.epochs, one.num_views) for name, one in wanted.items()} == {"5": (32, 8), "8": (8, 0)}
    # Both hear the eight views of one file.
    assert not budgets.cuts(paper.STUDIES["5"], FULL[paper.CIFAR100])


def test_a_name_is_of_what_a_run_does():
    wanted = CPU[paper.CIFAR100].recipe
    one = budgets.name_of(wanted)
    for place in ({"seed": 3}, {"teacher_weights": "a.keras"}, {"soft_labels": "there"}):
        assert budgets.name_of(dataclasses.replace(wanted, **place)) == one
    for other in ({"epochs": 21}, {"alpha": 1.0}, {"nesterov": True}):
        assert budgets.name_of(dataclasses.replace(wanted, **other)) != one
    assert budgets.name_of(wanted, teacher="teacher-a") != budgets.name_of(wanted, teacher="teacher-b")
    presets = [config.MultiNLI(student=f"{folder}/minilm") for folder in ("here", "there")]
    assert len({budgets.name_of(one) for one in presets}) == 1 and "minilm-" in budgets.name_of(presets[0])
    # A name does not change with the code: it is in files.
    assert budgets.name_of(config.Config(student="resnet8", method="none", epochs=3)) == "resnet8-none-2066c4"


def test_the_paper_has_its_own_networks_and_the_cpu_their_stand_ins():
    students = {(run.wanted.teacher, run.wanted.student) for run in _plan("3", FULL)[1] if run.teacher}
    assert students == {arm.pair for arm in paper.STUDIES["3"].arms}
    light = {run.wanted.student: run.wanted.learning_rate for run in _plan("3", FULL)[1]}
    assert light["shufflenet_v1"] == 0.01 and light["resnet20"] == 0.05
    runs = _plan("3", CPU)[1]
    assert {run.wanted.student for run in runs} == {"resnet8"} and len({run.arm.name for run in runs}) == len(runs)
    assert {run.arm.pair for run in runs} == {paper.TO_40_1}  # The first of the pairs that have one stand-in.
    wanted = FULL[paper.CIFAR100].recipe
    assert (wanted.epochs, wanted.decay_epochs, wanted.max_train_examples) == (240, (150, 180, 210), 0)
    assert budgets.shortened(240) == (150, 180, 210) and budgets.shortened(16) == (10, 12, 14)
    assert budgets.shortened(1) == ()


def test_teachers_of_their_study():
    teachers, students = _plan("6", CPU, seeds=3)
    assert sorted(run.wanted.label_smoothing for run in teachers.values()) == [0.0, 0.1]
    assert {run.wanted.max_train_examples for run in teachers.values()} == {0}
    for run in students:
        assert teachers[run.teacher].wanted.label_smoothing == (0.1 if run.arm.smoothed else 0.0)
    # The one whose checkpoints teach online is the teacher of all other tables too; a smoothed one keeps none.
    (teacher,) = _plan("online", CPU)[0].values()
    assert {name: run.wanted.checkpoint_every for name, run in teachers.items()} == {
        name: int(name == teacher.name) for name in teachers
    }
    kept = {run.wanted.student: run.wanted.checkpoint_every for run in _plan("3", FULL)[0].values()}
    assert kept == {"wrn_40_2": 0, "resnet56": 1, "resnet110": 0, "resnet32x4": 0}


def test_soft_labels_replace_a_teacher_of_logits_alone():
    replays = {run.wanted.method: run.replays for run in [*_plan("8", CPU)[1], *_plan("2", CPU)[1]]}
    heard = {"none": False, "kd": True, "masked_kd": True, "dkd": True, "lskd": True, "dist": True}
    assert replays == {**heard, **dict.fromkeys(("rkd", "at", "sp", "fitnet", "crd"), False)}
    assert [run.replays for run in _plan("online", CPU)[1]] == [False, True, True, False, False]
    assert not any(run.replays for run in _plan("2", FULL)[1])
    # What another run of the seed has not: a teacher in training mode, other crops.
    recipes_of_wsl = {run.arm.name: run.replays for run in _plan("recipe", CPU)[1]}
    assert [name for name, replayed in recipes_of_wsl.items() if replayed] == ["as CRD's", "Nesterov's momentum"]


@pytest.mark.parametrize("scales", [SMOKE, CPU, FULL], ids=["smoke", "cpu", "paper"])
def test_contrast_has_fewer_negatives_than_there_are_examples_of_other_classes(scales):
    wanted = next(run.wanted for run in _plan("8", scales)[1] if run.wanted.method == "crd")
    negatives = int(dict(item.split("=") for item in wanted.loss_kwargs).get("negatives", 16384))
    classes = 10 if scales is SMOKE else 100
    assert negatives <= (wanted.max_train_examples or 50_000) * (1 - 1 / classes)


def test_files_of_this_machine_are_named_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = paper.STUDIES["5"]
    work = tables.Work(study, CPU[paper.CIFAR100], 1, tmp_path / "runs", tmp_path / "train" / "results")
    found = work.config(work.students[0])
    assert found.soft_labels == f"runs/soft_labels/{work.students[0].teacher}-0"
    assert found.teacher_weights == f"runs/weights/{work.students[0].teacher}.weights.h5"
    (tmp_path / "train" / "results" / "weights").mkdir(parents=True)
    (tmp_path / "train" / "results" / "weights" / f"{work.students[0].teacher}.weights.h5").write_bytes(b"")
    assert work.config(work.students[0]).teacher_weights.startswith("train/results/weights/teacher-")
    assert not work.left()[0]  # A teacher that is kept is not trained again.


# What a page says.


def test_differences_are_paired():
    one, other = {0: 3.0, 1: 5.0, 2: 4.5, 7: 9.0}, {0: 2.0, 1: 3.5, 2: 4.0}
    found = page.difference(one, other)
    reference = stats.ttest_rel([3.0, 5.0, 4.5], [2.0, 3.5, 4.0])
    interval = reference.confidence_interval()
    assert found.mean == pytest.approx(1.0) and found.seeds == 3
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, reference.pvalue))
    assert page.difference({0: 1.0}, {1: 2.0}) is None
    single = page.difference({0: 3.0}, {0: 1.0})
    assert single.mean == 2.0 and math.isnan(single.p)
    assert page.difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0


def test_holms_correction():
    assert page.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert page.holm([0.5, math.nan, 0.6])[::2] == [1.0, 1.0] and math.isnan(page.holm([math.nan])[0])


@pytest.mark.parametrize(
    "mean, p, expected",
    [
        (1.0, 0.01, "holds"),
        (-1.0, 0.01, "the opposite holds"),
        (1.0, 0.2, "not told apart"),
        (1.0, math.nan, "one seed: no test"),
    ],
)
def test_verdicts(mean, p, expected):
    assert page.verdict(mean, p) == expected


def _line(name, accuracies, pair=("resnet20", "resnet8"), study="5"):
    arm = next(arm for arm in paper.STUDIES[study].arms if arm.name == name)
    rows = {
        seed: {
            "test_accuracy": a / 100,
            "best_accuracy": a / 100 + 0.01,
            "best_epoch": 3,
            "regularization_sample_rate": 0.25,
            "run": f"{name}-1a2b3c-{seed}",
        }
        for seed, a in enumerate(accuracies)
    }
    return page.Line(arm, pair, rows)


def test_a_table_has_both_numbers_and_their_differences():
    lines = [_line("KD", [50.0, 52.0]), _line("WSL", [51.0, 54.0])]
    kd, wsl = page.table(lines, paper.STUDIES["5"])
    assert (kd["paper"], kd["ours, last epoch"], kd["n"], kd["over KD: ours"]) == ("74.92", "51.00 ± 1.41", "2", "")
    assert kd["best epoch"] == "52.00 ± 1.41 (3 ± 0)" and kd["ours - paper"] == "-23.92"
    assert (wsl["over KD: paper"], wsl["over KD: ours"]) == ("+0.86", "+1.50")
    assert wsl["runs"] == "`WSL-1a2b3c-{0,1}`"
    assert "samples, %: paper" not in wsl


def test_counts_are_shown_where_the_paper_has_them():
    lines = [_line("KD, τ = 4", [50.0], study="1"), _line("KD, τ = 4, smoothed teacher", [49.0], study="1")]
    rows = page.table(lines, paper.STUDIES["1"])
    assert [row["samples, %: paper"] for row in rows] == ["35.4", "49.5"] and rows[0]["samples, %: ours"] == "25.0"
    more, better = page.claims(page.tested(lines, paper.STUDIES["1"]))
    assert more["paper"] == "+14.13" and more["ours"] == "+0.00" and more["claim"].endswith("regularization samples")
    assert better["ours"] == "+1.00" and better["p, Holm"] == "" and better["so"] == "one seed: no test"


def test_claims_are_tested_together():
    kept = "KD, regularization samples left out"
    lines = [_line("KD", [50.0, 51.0, 52.0]), _line(kept, [49.0, 49.8, 51.1]), _line("WSL", [60.0, 61.0, 62.0])]
    (claim,) = page.claims(page.tested(lines, paper.STUDIES["5"]))  # The other arms have no run.
    p = stats.ttest_rel([50.0, 51.0, 52.0], [49.0, 49.8, 51.1]).pvalue
    assert claim["p, Holm"] == f"{p:.3f}" and claim["so"] == "holds" and claim["paper"] == "+0.33"


def test_claims_of_all_tables_are_on_one_page(tmp_path):
    for table, name, accuracy in (("5", "KD", 0.5), ("5", "WSL", 0.6), ("9", "sigmoid, α = 3", 0.4)):
        for run in _plan(table, CPU, seeds=2)[1]:
            if run.arm.name == name:
                share = {"last_epoch": {"regularization_sample_rate": 0.3}}
                _record(tmp_path, run.name, test_accuracy=accuracy + 0.1 * run.wanted.seed, **share)
    tables.write(tmp_path / "out", tmp_path, "preset", ("cpu", "paper"))
    text = (tmp_path / "claims.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [table")]
    # KD and WSL of table 5 are arms of another too, and were trained for both.
    assert [row.split("|")[1].strip() for row in rows] == ["[table 6](table6.md)"]
    assert "WSL, τ = 4 > KD, τ = 4" in rows[0] and "| +10.00 | +10.00 to +10.00 | 2 | < 0.001 | holds |" in rows[0]
    assert text.count("## Budget") == 1 and (tmp_path / "claims_cpu.png").exists()
    # Every table that shares one of these runs has its page, and no other has.
    assert {path.name for path in tmp_path.glob("table*.md")} == {f"table{n}.md" for n in (1, 2, 5, 6, 9)}
    assert (tmp_path / "scale.md").exists() and not (tmp_path / "best.md").exists()


def test_the_page_of_multinli_is_of_the_preset_that_was_run(tmp_path):
    (kd,) = (run for run in _plan("11", CPU)[1] if run.arm.name == "KD")
    flags = "--student=folders/preset\n--sequence_length=48\n"
    told = {"student": "folders/preset", "eval_split": "9 held-out training examples", "mismatched_accuracy": 0.375}
    _record(tmp_path, kd.name, flags, **told)
    tables.write(tmp_path / "out", tmp_path, "bert_base_en", ("cpu",))
    text = (tmp_path / "table11.md").read_text()
    assert "| preset → preset, 3 layers | KD | 75.50 | 50.00 |" in text and "| ours, mismatched |" in text
    assert (
        f"| 37.50 | `{kd.name}` |" in text
        and "chosen by 9 held-out training examples, and its accuracy is theirs." in text
    )


# What is kept.


FLAGS = "--student=resnet8\n--teacher=\n--soft_labels=\n--epochs=2\n"


def _finish(folder, flags=FLAGS, **changes):
    result = {"student": "resnet8", "test_accuracy": 0.5, "seconds": 20.0, "train_examples": 100, "epochs": 2}
    artifacts.write_text(folder / "run.flags", flags)
    artifacts.write_csv(folder / "epochs.csv", [{"epoch": 1, "val_accuracy": 0.5}])
    artifacts.write_json(folder / "result.json", {**result, "device": artifacts.environment()["device"], **changes})


def _record(results, name, flags=FLAGS, **changes):
    """Add a finished run to the tables in a directory of results."""
    _finish(results / "finished" / name, flags, **changes)
    RunStore(results / "records").add(results / "finished" / name, paper.CIFAR100)


def test_estimates_are_of_runs_alike_and_else_of_multiplications(tmp_path):
    store = RunStore(tmp_path / "records")
    _record(tmp_path, "done")
    estimator = Estimator(store.rows(), 1000)
    wanted = dataclasses.replace(
        CPU[paper.CIFAR100].recipe, student="resnet8", epochs=4, max_train_examples=0, method="none"
    )
    # 20 s for 100 examples in 2 epochs.
    assert estimator.estimate(budgets.Run("a", wanted)) == pytest.approx(400)
    larger = dataclasses.replace(wanted, student="resnet20", max_train_examples=500)
    assert estimator.estimate(budgets.Run("b", larger)) == pytest.approx(200 * 40_818_944 / 12_507_392)
    taught = dataclasses.replace(wanted, teacher="resnet20", method="kd")
    live = estimator.estimate(budgets.Run("c", taught, teacher="t"))
    assert live == pytest.approx(400 * (1 + 40_818_944 / (3 * 12_507_392)))
    assert estimator.estimate(budgets.Run("d", taught, teacher="t", replays=True)) == pytest.approx(400)
    assert Estimator([], 1000).estimate(budgets.Run("a", wanted)) is None
    other = Estimator([{**row, "device": "another"} for row in store.rows()], 1000)
    assert other.from_other_devices and not estimator.from_other_devices
    assert other.estimate(budgets.Run("a", wanted)) == pytest.approx(400)
    assert [format_seconds(seconds) for seconds in (29, 61, 3660, 7500)] == [
        "0 min",
        "1 min",
        "1 h 01 min",
        "2 h 05 min",
    ]


def test_estimates_of_other_data_are_of_examples_of_their_size(tmp_path):
    """Another image size, or another part of the network, says nothing; neither does CIFAR-100."""
    wanted = CPU[paper.IMAGENET].recipe
    _record(tmp_path, "small")
    flags = "\n".join(config.to_lines(wanted)) + "\n"
    _record(tmp_path, "images", flags, student=wanted.student, train_examples=40)
    estimator = Estimator(RunStore(tmp_path / "records").rows(), 50_000)
    # 20 s for 2 epochs of what it had: the data set is that large.
    assert estimator.estimate(budgets.Run("a", wanted)) == pytest.approx(10 * wanted.epochs)
    larger = dataclasses.replace(wanted, image_size=224)
    other = dataclasses.replace(wanted, student="imagenet_mobilenet_v1")
    assert [estimator.estimate(budgets.Run("b", one)) for one in (larger, other)] == [None, None]


# Whole tables.


def _values(tmp_path, table, **changes):
    given = {
        "show_flags": None,
        "budget": "smoke",
        "seeds": None,
        "jobs": 2,
        "plan": False,
        "report": False,
        "preset": "preset",
    }
    paths = {"data_dir": str(tmp_path / "images.npz"), "output_dir": str(tmp_path / "runs"), "results": None}
    return types.SimpleNamespace(table=table, **{**given, **paths, **changes})


def test_a_study_is_trained_once_and_reported(tmp_path, processes, monkeypatch, capsys):
    data.save_npz(bright_splits(150), tmp_path / "images.npz")
    arms = [arm for arm in paper.STUDIES["5"].arms if arm.name in ("KD", "WSL")]
    small = paper.STUDIES["5"]._replace(arms=tuple(arms), claims=(paper.Claim("WSL", "KD"),))
    monkeypatch.setitem(paper.STUDIES, "5", small)
    teacher, kd, wsl = [*_plan("5", SMOKE)[0], *(run.name for run in _plan("5", SMOKE)[1])]
    tables.run(_values(tmp_path, "5", plan=True))
    assert "0 students are done; left: 1 teachers, 2 students" in capsys.readouterr().out and not processes
    assert tables.run(_values(tmp_path, "5")) == 0
    assert sorted(processes) == sorted([teacher, kd, wsl]) and processes[0] == teacher
    out = tmp_path / "runs"
    store = RunStore(out / "records")
    flags = store.get(wsl).flags
    assert f"--teacher_weights={out / 'weights' / teacher}.weights.h5" in flags
    assert f"--soft_labels={out / 'soft_labels' / teacher}-0" in flags
    text = (out / "table5.md").read_text()
    row = next(line for line in text.splitlines() if "| WSL |" in line)
    accuracy = 100 * store.row(wsl)["test_accuracy"]
    assert f"| 75.78 | {accuracy:.2f} |" in row and f"`{wsl}`" in row
    assert "WSL > KD" in text and "| data | 1,797 digits" in text

    # Again: nothing is left; with what is kept alone too; and another seed needs no second teacher.
    for again in (_values(tmp_path, "5"), _values(tmp_path, "5", report=True)):
        assert tables.run(again) == 0
    assert len(processes) == 3 and (out / "table5.md").read_text() == text
    tables.run(_values(tmp_path, "5", seeds=2))
    assert sorted(processes[3:]) == sorted([f"{kd[:-1]}1", f"{wsl[:-1]}1"])
    assert "2 students are done; left: 0 teachers, 2 students, about" in capsys.readouterr().out
    assert " ± " in (out / "table5.md").read_text()


def test_a_run_that_fails_leaves_the_others_and_is_told(tmp_path, processes, monkeypatch):
    data.save_npz(bright_splits(150), tmp_path / "images.npz")
    arms = (paper.STUDIES["2"].arms[0], paper.Arm("broken", {"method": "none", "temperature": 4.0}, paper.TO_16_2))
    monkeypatch.setitem(paper.STUDIES, "2", paper.STUDIES["2"]._replace(arms=arms, claims=(), over="labels"))
    call = jobs.call

    def fails(arguments, *others):
        return (2, "ValueError: broken") if "--temperature=4.0" in arguments else call(arguments, *others)

    monkeypatch.setattr(jobs, "call", fails)
    assert tables.run(_values(tmp_path, "2", jobs=1)) == 1
    text = (tmp_path / "runs" / "table2.md").read_text()
    assert len(processes) == 1 and "| broken |" not in text and "Not run, resnet8 → resnet8: broken.\n" in text


def test_pages_have_a_part_for_each_budget(tmp_path):
    results = tmp_path / "results"
    for scales, accuracy in ((CPU, 0.4), (FULL, 0.75)):
        for run in _plan("2", scales, seeds=2)[1]:
            if run.arm.name == "labels":
                _record(results, run.name, test_accuracy=accuracy, best_accuracy=accuracy, best_epoch=2)
    tables.write(tmp_path / "runs", results, "preset", ("cpu", "paper"))
    text = (results / "table2.md").read_text()
    assert text.index("## Budget `cpu`") < text.index("## Budget `paper`")
    assert "| resnet20 → resnet8 | labels | 73.26 | 40.00 ± 0.00 |" in text
    assert "| 73.26 | 75.00 ± 0.00 |" in text and "smoke" not in text
    assert "Not run, resnet20 → resnet8: KD; KD, label's logit masked" in text
    for budget in ("cpu", "paper"):
        assert f"![Accuracies](table2_{budget}.png)" in text and (results / f"table2_{budget}.png").exists()


def test_figure_2_is_of_the_first_seeds_that_are_finished(tmp_path):
    """Its students heard their teachers from files: the teachers' accuracies are those of their own runs."""
    teachers, students = _plan("1", SMOKE, seeds=2)
    runs = tmp_path / "runs"
    epoch = {"epoch": 1, "regularization_samples": 64, "regularization_sample_rate": 0.5}
    for name, run in teachers.items():
        _finish(runs / name, test_accuracy=0.75 if run.wanted.label_smoothing else 0.875)
    for run in students[:-1]:  # All of the first seed.
        _finish(runs / run.name, teacher="resnet8")
        artifacts.write_csv(runs / run.name / "epochs.csv", [{**epoch, "val_accuracy": 0.25}])
        counts = {**epoch, "examples": 256, **{f"class_{digit}": digit for digit in range(10)}}
        artifacts.write_csv(runs / run.name / "tensorboard" / "regularization_samples.csv", [counts])
    values = _values(tmp_path, "figure2", data_dir=None, report=True, seeds=2)
    assert tables.run(values) == 0
    text = (tmp_path / "runs" / "figure2.md").read_text()
    assert "| 4 | labels | 87.50 | 64 | 50.0 | 25.0 | 25.00 | 35.4 | 74.92 |" in text
    assert "| 4 | smoothed labels | 75.00 |" in text and text.count("smoothed labels | 75.00") == 3
    assert (tmp_path / "runs" / "figure2.png").exists()


def test_show_flags_prints_a_flagfile(tmp_path, capsys):
    _record(tmp_path, "kd-0")
    values = _values(tmp_path, None, show_flags="kd-0", results=str(tmp_path))
    assert tables.run(values) == 0 and capsys.readouterr().out == FLAGS
    with pytest.raises(ValueError, match="'kd-1' is not a recorded run"):
        tables.run(types.SimpleNamespace(**{**vars(values), "show_flags": "kd-1"}))


def test_a_report_of_nothing_writes_nothing(tmp_path, capsys):
    assert tables.run(_values(tmp_path, "2", report=True, data_dir=None)) == 0
    assert "No run of table 2 is finished: there is no page." in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.md"))


def test_labels_alone_are_compared_with_each_teachers_students(tmp_path):
    """A student on labels is one run for all teachers: ResNet-56's and ResNet-110's ResNet-20."""
    for run in _plan("3", FULL)[1]:
        if run.wanted.student == "resnet20" and run.arm.name in ("labels", "KD"):
            accuracy = 0.6 if run.arm.name == "labels" else 0.7
            _record(tmp_path, run.name, test_accuracy=accuracy, best_accuracy=accuracy, best_epoch=2)
    work = tables.Work(paper.STUDIES["3"], FULL[paper.CIFAR100], 1, tmp_path / "out", tmp_path)
    lines, _ = work.lines()
    assert [(line.pair[0], line.arm.name) for line in lines] == [
        (teacher, name) for teacher in ("resnet56", "resnet110") for name in ("labels", "KD")
    ]
    assert [row["ours"] for row in page.claims(page.tested(lines, paper.STUDIES["3"]))] == ["+10.00", "+10.00"]
    assert [row["over KD: ours"] for row in page.table(lines, paper.STUDIES["3"])] == ["-10.00", "", "-10.00", ""]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"table": "12"}, "--table=12 is none of the papers'. Expected one of 1, 2, .*figure4"),
        ({"output_dir": None}, "--output_dir and --data_dir are needed: .*cifar100"),
        ({"table": "11", "data_dir": None}, "--output_dir and --data_dir are needed: .*multinli"),
        (
            {"table": "figure2", "budget": "cpu", "report": True, "data_dir": None},
            "--output_dir and --data_dir are needed",
        ),
        ({"data_dir": "absent.npz"}, "absent.npz"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tables.run(_values(tmp_path, **{"table": "5", **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, study in paper.STUDIES.items() if study.data == paper.CIFAR100])
def test_the_smoke_of_a_table(name, tmp_path):
    """In processes of their own, on the digits."""
    values = _values(tmp_path, name, data_dir=None)
    assert tables.run(values) == 0
    text = (tmp_path / "runs" / (f"table{name}.md" if name.isdigit() else f"{name}.md")).read_text()
    assert all(f"`{run.name}`" in text for run in _plan(name, SMOKE)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name, place", [("4", "tree"), ("11", "folder")])
def test_the_smoke_of_other_data(name, place, tmp_path, request, preset, monkeypatch):
    """Of a few JPEG files and pairs of sentences: smaller than the budget expects, so that it is cut further."""
    study, scales = paper.STUDIES[name], budgets.smoke(str(preset))
    scale = scales[study.data]
    cut = {"max_train_examples": 0, "batch_size": 8} | (
        {"validation_examples": 0, "sequence_length": 16} if name == "11" else {}
    )
    scales[study.data] = scale._replace(recipe=dataclasses.replace(scale.recipe, **cut))
    monkeypatch.setitem(budgets.BUDGETS, "smoke", lambda preset: scales)
    values = _values(tmp_path, name, data_dir=str(request.getfixturevalue(place)), preset=str(preset))
    assert tables.run(values) == 0
    text = (tmp_path / "runs" / f"table{name}.md").read_text()
    assert "WSL > KD" in text
    assert len(RunStore(tmp_path / "runs" / "records").rows()) == 4  # A teacher, labels, KD and WSL.


@pytest.mark.slow
def test_the_smoke_of_the_figures(tmp_path):
    assert tables.run(_values(tmp_path, "figure2", data_dir=None)) == 0
    assert (tmp_path / "runs" / "figure2.png").read_bytes()[:4] == b"\x89PNG"
    assert tables.run(_values(tmp_path, "figure4", data_dir=None)) == 0
    assert (tmp_path / "runs" / "figure4" / "resemblance.png").read_bytes()[:4] == b"\x89PNG"
