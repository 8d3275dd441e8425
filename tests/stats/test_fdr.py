import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from tasks.stats.fdr import benjamini_hochberg

P_VALUES = st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=60)


def test_published_example():
    """Benjamini and Hochberg (1995), section 3.2: four rejections at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert (benjamini_hochberg(p).q <= 0.05).sum() == 4


@given(P_VALUES)
def test_equals_statsmodels_on_the_defined_and_states_the_family(p):
    p = np.array(p)
    family = benjamini_hochberg(p)
    tested = ~np.isnan(p)
    assert (family.size, family.untested) == (tested.sum(), (~tested).sum())
    assert np.isnan(family.q[~tested]).all()
    if tested.any():
        assert family.q[tested] == pytest.approx(multipletests(p[tested], method="fdr_bh")[1])


@given(P_VALUES)
def test_q_keeps_the_order_of_p_and_is_at_least_p(p):
    q = benjamini_hochberg(p).q
    p = np.array(p)[~np.isnan(p)]
    q = q[~np.isnan(q)][np.argsort(p)]
    assert (np.diff(q) >= 0).all()
    assert (q >= np.sort(p) * (1 - 1e-12)).all()


def test_any_shape():
    p = np.array([[0.01, 0.02], [np.nan, 0.03]])
    assert benjamini_hochberg(p).q.ravel()[[0, 1, 3]] == pytest.approx([0.03, 0.03, 0.03])


@pytest.mark.parametrize("p", [-0.1, 1.1, np.inf])
def test_impossible_p(p):
    with pytest.raises(ValueError, match="outside"):
        benjamini_hochberg([0.5, p])
