"""The products that Gauss-Newton steps are made from, which are corrected and not computed anew."""

import pytest
import torch

from vaeaudit.optim.gram import Gram


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 1.0])
def test_the_product_is_that_of_the_matrix_over_the_columns_asked_for(share: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    kept = normal(3, 40, 64)
    gram, columns = Gram(kept.clone()), normal(3, 64) > 0
    for _ in range(300):
        # The matrix shrinks to a thousandth, so that what rounding left of the large one would show.
        along, change = torch.nn.functional.normalize(normal(3, 1, 40), dim=2), 1e-3 * normal(3, 1, 64)
        change = change - 0.3 * torch.bmm(along, gram.matrix)
        kept = kept + along.mT * change
        gram.correct(along, change)
        columns = columns ^ (torch.rand(3, 64, generator=generator) < share * torch.tensor([[1.0], [0.5], [0.0]]))
        exact = torch.bmm(kept * columns[:, None], kept.mT)
        torch.testing.assert_close(gram.over(columns.float()), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    torch.testing.assert_close(gram.matrix, kept, rtol=1e-3, atol=1e-5)


def test_no_column_gives_nothing() -> None:
    gram = Gram(torch.ones(2, 3, 5))
    assert gram.over(torch.zeros(2, 5)).count_nonzero() == 0
    assert (gram.over(torch.ones(2, 5)) == 5).all()
