"""Programs and notebooks that nobody here wrote, kept outside of this repository: each behaves as under CPython and IPython.

They take some ten minutes, so `make corpus` runs them and `make test` does not. ONETRIP_SHARED names the folder that holds them;
without it, the folder `shared` beside the checkout is tried. The environment `corpus` must hold the packages that the corpus
names; `make corpus` builds it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ONETRIP_SHARED") or HERE.parents[2] / "shared")
RUNNER = SHARED / "corpus" / "run_corpus.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ONETRIP_CORPUS" not in os.environ, reason="takes ten minutes: make corpus"),
    pytest.mark.skipif(not RUNNER.is_file(), reason=f"the corpus is not here: there is no {RUNNER}; set ONETRIP_SHARED"),
]

# Items that differ, and why. docs/limits/ says the same in more words.
ARITHMETIC = "last digits of floating point: the expectation is from another processor, plain CPython here gives what we give"
TIMES = "prints how long something took"
DIFFERENT = {
    "dseval/kaggle/life-expectancy-data": ARITHMETIC,
    "dseval/kaggle/monthly-food-price-estimates": ARITHMETIC,
    "handson-ml3/04_training_linear_models": ARITHMETIC,
    "pydata-book/ch04": ARITHMETIC,
    "pydata-book/ch05": ARITHMETIC,
    "sci-lectures/packages.statistics.index": ARITHMETIC,
    "sklearn-examples/gaussian_process.plot_gpr_prior_posterior": ARITHMETIC,
    "statsmodels-notebooks/discrete_choice_example": ARITHMETIC,
    "statsmodels-notebooks/ets": ARITHMETIC,
    "statsmodels-notebooks/exponential_smoothing": ARITHMETIC,
    "statsmodels-notebooks/gls": ARITHMETIC,
    "statsmodels-notebooks/postestimation_poisson": ARITHMETIC,
    "statsmodels-notebooks/treatment_effect": ARITHMETIC,
    "sci-lectures/advanced.mathematical_optimization.index": TIMES,
    "sklearn-examples/gaussian_process.plot_compare_gpr_krr": TIMES,
    "sklearn-examples/model_selection.plot_grid_search_digits": "chooses the model that predicts fastest, by the clock",
    "networkx-examples/drawing.plot_chess_masters": "prints a set of texts, whose order follows the seed of the hash",
    "sci-lectures/intro.language.reusing_code": "lists a folder: its order, and files that an earlier run had left there",
    "pydata-book/ch06": "pandas.read_html finds no table with these versions; plain CPython here neither",
}


def test_every_program_behaves_as_outside_of_the_sandbox(tmp_path):
    failures = tmp_path / "failures.jsonl"
    ran = subprocess.run(
        [
            sys.executable,
            str(RUNNER),
            "--adapter",
            "adapter:make",
            "--jobs",
            str(os.cpu_count() or 1),
            "--failures",
            str(failures),
        ],
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=3 * 3600,
        check=False,  # its status says only whether anything differed, which is judged here
    )
    print(ran.stdout)  # the figures, source by source
    assert failures.exists(), f"the runner ended with {ran.returncode}"
    items = sum(path.read_bytes().count(b"\n") for path in (SHARED / "corpus" / "dev").glob("*.jsonl"))
    total = re.search(r"^all +\d+/(\d+) ", ran.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[1]) == items  # none was left out
    found = {item["id"]: item["mismatches"] for item in map(json.loads, failures.read_text("utf-8").splitlines())}
    assert {item: mismatches for item, mismatches in found.items() if item not in DIFFERENT} == {}
