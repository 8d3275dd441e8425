import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.errors import BadInput
from tasks.patching.replication import check_samples, duplicate_alarms
from tests.patching.simulated import null, simulate


def replaced(table, column, values):
    return table.set_column(table.column_names.index(column), column, values)


def test_independent_samples_pass():
    trials = simulate(null, 0)
    check_samples(trials, simulate(null, 0, phase="confirmation"), temperature=0.7)
    assert duplicate_alarms(trials) == []


def test_greedy_repeats_are_refused():
    with pytest.raises(BadInput, match="greedy repeats"):
        check_samples(simulate(null, 0), None, temperature=0)
    check_samples(simulate(null, 0, n=1, n_baseline=1), None, temperature=0)


def test_a_shard_given_twice_is_refused():
    trials = simulate(null, 0)
    with pytest.raises(BadInput, match="different values of 'trial'"):
        check_samples(pa.concat_tables([trials, trials]), None, temperature=0.7)


def test_one_seed_for_all_trials_is_refused():
    trials = simulate(null, 0)
    fixed = replaced(trials, "seed", pa.array([42] * len(trials)))
    with pytest.raises(BadInput, match="only 1 different values of 'seed'"):
        check_samples(fixed, None, temperature=0.7)


def test_common_random_numbers_across_cells_are_allowed():
    trials = simulate(null, 0)
    check_samples(replaced(trials, "seed", trials["trial"].cast(pa.int64())), None, temperature=0.7)


def test_confirmation_on_seeds_of_the_discovery_is_refused():
    trials = simulate(null, 0)
    with pytest.raises(BadInput, match="held-out seeds"):
        check_samples(trials, trials.slice(0, 10), temperature=0.7)


def test_copies_of_long_responses_raise_an_alarm():
    trials = simulate(null, 0, candidates=1)
    feature = pc.equal(trials["arm"], "feature")
    copies = replaced(trials, "tokens", pc.if_else(feature, pa.scalar(b"same"), trials["tokens"]))
    (alarm,) = duplicate_alarms(copies)
    assert (alarm["code"], alarm["cells"], alarm["responses"]) == ("duplicate_responses", 4, 4 * 29)
    short = replaced(copies, "n_tokens", pa.array([3] * len(copies), pa.int32()))
    assert duplicate_alarms(short) == []
