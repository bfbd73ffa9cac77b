"""The packed forward gives what the usual padded one gives, with the stock transformers model as the judge."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers

from serve_app.inference import attention
from serve_app.inference.attention import (
    AttentionPlan,
    first_token_attention,
    joined_attention,
    packed_attention,
    plan_attention,
    spares_keys,
    takes_whole_row,
)
from serve_app.inference.distilbert import PackedDistilBert, row_filler
from serve_app.inference.families import new_distilbert
from serve_app.inference.packing import PackedBatch, pack, plan_batches
from serve_app.inference.rebuilding import joined, rebuilt
from serve_app.inference.token_ids import TokenizedTexts
from tests.tiny import tokens_of

LENGTHS = [1, 2, 3, 5, 8, 8, 13, 31, 40, 44, 64, 95, 97, 128, 200, 255, 256, 384, 511, 512]


@pytest.fixture(scope="module")
def model() -> PackedDistilBert:
    torch.manual_seed(0)
    made = new_distilbert(
        layers=2, width=64, heads=4, feed_forward_width=128, vocabulary_size=300, max_length=512,
        labels=("a", "b", "c"),
    )  # fmt: skip
    with torch.no_grad():  # larger than at the start of training, so that a mistake is seen in the probabilities
        for name, parameter in made.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.3)
        for parameter in made.classifier.parameters():
            parameter.mul_(20)
    return made.eval()


def stock_of(model: PackedDistilBert) -> transformers.DistilBertForSequenceClassification:
    """transformers' own model with the same weights."""
    config = transformers.DistilBertConfig(**model.config.as_stock(), num_labels=len(model.config.labels))
    stock = transformers.DistilBertForSequenceClassification(config).eval()
    stock.load_state_dict(model.state_dict())
    stock.set_attn_implementation("eager")
    return stock


def padded_logits(model: PackedDistilBert, tokens: TokenizedTexts) -> torch.Tensor:
    stock = stock_of(model)
    longest = int(tokens.lengths.max())
    ids = torch.zeros(len(tokens), longest, dtype=torch.long)
    mask = torch.zeros(len(tokens), longest, dtype=torch.long)
    for row in range(len(tokens)):
        ids[row, : len(tokens[row])] = torch.from_numpy(tokens[row].astype(np.int64))
        mask[row, : len(tokens[row])] = 1
    with torch.inference_mode():
        return stock(input_ids=ids, attention_mask=mask).logits


def packed_logits(model: PackedDistilBert, tokens: TokenizedTexts) -> torch.Tensor:
    with torch.inference_mode():
        return model(pack([tokens[i] for i in range(len(tokens))]))


def test_fp32_equals_padded_for_lengths_1_to_512(model: PackedDistilBert) -> None:
    order = np.random.default_rng(0).permutation(LENGTHS)
    tokens = tokens_of(np.random.default_rng(1), order.tolist(), 300)
    torch.testing.assert_close(packed_logits(model, tokens), padded_logits(model, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", range(1, 512, 73))
def test_every_length_alone_equals_padded(model: PackedDistilBert, start: int) -> None:
    for length in range(start, min(start + 73, 513), 9):
        tokens = tokens_of(np.random.default_rng(length), [length], 300)
        torch.testing.assert_close(packed_logits(model, tokens), padded_logits(model, tokens), atol=1e-5, rtol=1e-5)


def test_bf16_probabilities_within_two_hundredths(model: PackedDistilBert) -> None:
    tokens = tokens_of(np.random.default_rng(2), LENGTHS, 300)
    expected = padded_logits(model, tokens).softmax(-1)
    found = packed_logits(copy.deepcopy(model).to(torch.bfloat16), tokens).float().softmax(-1)
    assert (expected - found).abs().max() < 0.02


@pytest.fixture(params=[True, False], ids=["slow kernel", "fast kernel"])
def slow_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of processors, on any: see ``has_slow_kernel``."""
    monkeypatch.setattr(attention, "has_slow_kernel", lambda: request.param)
    return bool(request.param)


def batch_of(lengths: Sequence[int]) -> PackedBatch:
    return pack([np.ones(length, dtype=np.int32) for length in lengths])


@pytest.mark.parametrize("lengths", [[1], [5, 5], [3, 40, 40, 90], [31, 32, 33] * 9, [4] * 40, LENGTHS])
def test_bf16_attends_like_fp32_however_it_is_computed(lengths: list[int], slow_kernel: bool) -> None:
    """By the fused kernel or by products, with every place taken or not."""
    rng = np.random.default_rng(9)
    batch = batch_of(lengths)
    three = [torch.from_numpy(rng.normal(size=(sum(lengths) + 5, 4, 16)).astype(np.float32)) for _ in range(3)]
    with torch.inference_mode():
        expected = packed_attention(*three, plan_attention(batch, torch.float32))
        plan = plan_attention(batch, torch.bfloat16)
        halved = [tensor.to(torch.bfloat16) for tensor in three]
        for found in (packed_attention(*halved, plan), joined_attention(torch.stack(halved, 1), plan)):
            torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
        first = batch.cu_seqlens[:-1]
        of_first = packed_attention(halved[0][first], *halved[1:], plan, first_tokens=True)
        torch.testing.assert_close(of_first.float(), expected[first], atol=0.03, rtol=0.03)


def first_tokens_both_ways(
    lengths: Sequence[int], dtype: torch.dtype, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 4 heads of 16: without keys and values, and with those of every token, in fp32 and without dropout."""
    rng, batch = np.random.default_rng(12), batch_of(lengths)
    query, hidden, key_weight, value_weight = (
        torch.from_numpy(rng.normal(size=size).astype(np.float32))
        for size in ((len(lengths), 4, 16), (sum(lengths) + 5, 48), (64, 48), (64, 48))
    )
    key_weight, value_weight = key_weight / 7, value_weight / 7
    key, value = ((hidden @ weight.T).unflatten(1, (4, 16)) for weight in (key_weight, value_weight))
    plan = plan_attention(batch, torch.float32)
    expected = packed_attention(query, key, value, plan, first_tokens=True)
    four = (tensor.to(dtype) for tensor in (query, hidden, key_weight, value_weight))
    plan = plan_attention(batch, dtype, dropout)
    assert spares_keys(plan, dtype)
    return first_token_attention(*four, plan, dropout).float(), expected


@pytest.mark.parametrize("lengths", [[28, 28, 28], [3, 40, 40, 90], [31, 32, 33] * 9, [1, 256, 300]])
def test_first_tokens_need_no_keys_and_values_of_others(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "has_slow_kernel", lambda: True)
    with torch.inference_mode():
        torch.testing.assert_close(*first_tokens_both_ways(lengths, torch.float32), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(*first_tokens_both_ways(lengths, torch.bfloat16), atol=0.05, rtol=0.05)
    torch.testing.assert_close(*first_tokens_both_ways(lengths, torch.float32), atol=1e-5, rtol=1e-4)  # by products


def test_first_tokens_with_dropout_are_right_on_average() -> None:
    torch.manual_seed(0)
    draws = [first_tokens_both_ways([6, 9, 40], torch.float32, 0.25) for _ in range(1000)]
    assert not torch.equal(draws[0][0], draws[1][0])
    torch.testing.assert_close(sum(found for found, _ in draws) / len(draws), draws[0][1], atol=0.08, rtol=0.0)


def test_where_first_tokens_need_no_keys(slow_kernel: bool) -> None:
    def spares(lengths: Sequence[int], dtype: torch.dtype) -> bool:
        return spares_keys(plan_attention(batch_of(lengths), dtype), dtype)

    with torch.inference_mode():
        assert spares([28], torch.float32)
        assert spares([28] * 10, torch.bfloat16) == slow_kernel
        assert not spares([28], torch.bfloat16)
    assert spares([28], torch.bfloat16)  # with gradients
    on_gpu = AttentionPlan(torch.empty(2, device="meta"), 28, ())
    assert not spares_keys(on_gpu, torch.float32)


class Joined(torch.nn.Linear):
    """Some linear layers as one, as ``PrepackedLinear`` has them, on any processor."""

    def __init__(self, *linears: torch.nn.Linear) -> None:
        super().__init__(linears[0].in_features, sum(linear.out_features for linear in linears))
        with torch.no_grad():
            self.weight = torch.nn.Parameter(torch.cat([linear.weight for linear in linears]))
            self.bias = torch.nn.Parameter(torch.cat([linear.bias for linear in linears]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[28], [28] * 10, [4] * 40, [12, 20, 28, 40, 260]])
def test_joined_layers_give_the_same(
    model: PackedDistilBert, lengths: list[int], dtype: torch.dtype, slow_kernel: bool
) -> None:
    plain = copy.deepcopy(model).to(dtype)
    other = rebuilt(plain, lambda exact, last: joined(exact, Joined, last=last), lambda exact: exact)
    tokens = tokens_of(np.random.default_rng(13), lengths, 300)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    found, expected = (packed_logits(one, tokens).float().softmax(-1) for one in (other, plain))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0.0)


def test_products_are_for_many_tokens_and_little_waste(slow_kernel: bool) -> None:
    def by_products(lengths: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> bool:
        (found,) = {group.by_products for group in plan_attention(batch_of(lengths), dtype).groups}
        return found

    with torch.inference_mode():
        assert by_products([28] * 10) == by_products([256]) == by_products([12, 20, 28, 40, 60]) == slow_kernel
        assert not by_products([28])  # few tokens
        assert not by_products([8] * 40)  # places for four times as many
        assert not by_products([256], torch.float32)
    assert by_products([28], torch.float32)  # with gradients


def test_a_text_with_nan_leaves_its_neighbours_alone(slow_kernel: bool) -> None:
    rng = np.random.default_rng(10)
    batch = batch_of([9, 36, 38, 40])  # the last three in one group, also for the kernel
    rows = torch.from_numpy(rng.normal(size=(123, 3, 4, 16)).astype(np.float32))
    rows[45:83] = torch.nan
    clean = torch.tensor([True] * 45 + [False] * 38 + [True] * 40)
    first = batch.cu_seqlens[:-1]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            halved, plan = rows.to(dtype), plan_attention(batch, dtype)
            for found in (joined_attention(halved, plan), packed_attention(*halved.unbind(1), plan)):
                assert found.isfinite().flatten(1).all(1).equal(clean)
            query, key, value = halved.unbind(1)
            of_first = packed_attention(query[first], key, value, plan, first_tokens=True)
            assert of_first.isfinite().flatten(1).all(1).tolist() == [True, True, False, True]
            if spares_keys(plan, dtype):
                weight = torch.eye(64, dtype=dtype)
                spared = first_token_attention(query[first], key.flatten(1), weight, weight, plan)
                assert spared.isfinite().flatten(1).all(1).tolist() == [True, True, False, True]
    query, key, value = (row.clone().requires_grad_() for row in rows.unbind(1))
    packed_attention(query, key, value, plan_attention(batch, torch.float32)).sum().backward()
    for row in (query, key, value):
        assert row.grad is not None
        assert row.grad.isfinite().flatten(1).all(1).equal(clean)


def test_products_without_gradients_have_few_shapes(slow_kernel: bool) -> None:
    """See ``_MOST_SCORES``: each takes megabytes."""
    rng = np.random.default_rng(11)
    with torch.inference_mode():
        plans = [plan_attention(batch_of(rng.integers(20, 129, size=12)), torch.bfloat16) for _ in range(200)]
    shapes = {(group.texts, group.longest) for plan in plans for group in plan.groups}
    if slow_kernel:
        assert {longest for _, longest in shapes} == {32, 64, 96, 128}
        assert len(shapes) <= 8 + 2 + 1 + 1
    else:
        assert len(shapes) > 100


def test_gradients_equal_padded_ones(model: PackedDistilBert) -> None:
    tokens = tokens_of(np.random.default_rng(3), [3, 9, 10, 11, 40, 120], 300)
    packed, stock = copy.deepcopy(model), stock_of(model)
    packed(pack([tokens[i] for i in range(len(tokens))])).square().sum().backward()
    total = sum(
        stock(input_ids=torch.from_numpy(tokens[i].astype(np.int64))[None]).logits.square().sum()
        for i in range(len(tokens))
    )
    total.backward()  # type: ignore[union-attr]
    for (name, ours), theirs in zip(packed.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_new_weights_are_spread_like_the_stock_ones() -> None:
    sizes = {"layers": 2, "width": 64, "heads": 4, "feed_forward_width": 128, "vocabulary_size": 900, "max_length": 128}
    torch.manual_seed(0)
    ours = new_distilbert(labels=("a", "b"), **sizes)
    stock = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**ours.config.as_stock()))
    for (name, found), expected in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert found.shape == expected.shape, name
        noise = 6 * 0.02 / found.numel() ** 0.5  # 4 standard deviations of the difference of two means
        assert abs(found.mean() - expected.mean()) < noise, name
        assert abs(found.std() - expected.std()) < noise, name
    assert not ours.distilbert["embeddings"].word_embeddings.weight[0].any()


def test_texts_do_not_see_each_other(model: PackedDistilBert) -> None:
    rng = np.random.default_rng(4)
    tokens = tokens_of(rng, [7, 7, 8, 100], 300)
    changed = TokenizedTexts.from_lists([tokens[0], *tokens_of(rng, [7, 9, 130], 300)])
    torch.testing.assert_close(packed_logits(model, tokens)[0], packed_logits(model, changed)[0])


def test_pack_refuses_nothing_and_empty_texts() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
    with pytest.raises(ValueError, match="at least one"):
        pack([np.array([1, 2]), np.array([], dtype=np.int32)])


def test_batches_keep_order_and_budget() -> None:
    lengths = np.random.default_rng(5).integers(1, 60, size=300)
    order = np.random.default_rng(6).permutation(300)
    batches = plan_batches(lengths, max_tokens=128, max_texts=7, order=order)
    assert np.concatenate(batches).tolist() == order.tolist()
    assert all(lengths[batch].sum() <= 128 and len(batch) <= 7 for batch in batches)
    assert [len(batch) for batch in plan_batches([500, 3], max_tokens=100, max_texts=9)] == [1, 1]


def test_training_has_few_shapes_and_little_filler() -> None:
    """Every new shape costs a compiled kernel: see ``row_filler`` and the plan of attention."""
    lengths = np.random.default_rng(7).integers(1, 513, size=(300, 8))
    plans = [plan_attention(batch_of(row), torch.float32) for row in lengths]
    assert {group.longest for plan in plans for group in plan.groups} <= set(range(32, 513, 32))
    totals = range(1, 20_000)
    assert all(row_filler(tokens) <= max(15, tokens / 16) for tokens in totals)
    assert all(row_filler(tokens, compiled=False) <= max(3, tokens / 16) for tokens in totals)
    assert len({tokens + row_filler(tokens) for tokens in totals if 4096 <= tokens < 8192}) <= 17


@pytest.mark.parametrize(
    ("dtype", "autocast", "compiles", "rows"),
    [
        (torch.float32, False, False, 52),
        (torch.float32, True, False, 64),
        (torch.bfloat16, False, False, 64),
        (torch.float32, False, True, 64),  # int8
    ],
)
def test_rows_are_filled_up_more_where_products_are_compiled(
    model: PackedDistilBert, dtype: torch.dtype, autocast: bool, compiles: bool, rows: int
) -> None:
    other, seen = copy.deepcopy(model).to(dtype), []
    other.compiles_products = compiles
    other.distilbert["transformer"].layer[0].register_forward_hook(
        lambda _module, _given, found: seen.append(len(found))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        packed_logits(other, tokens_of(np.random.default_rng(8), [3, 40, 7], 300))
    assert seen == [rows]


def test_only_first_tokens_are_computed_in_the_last_block(model: PackedDistilBert) -> None:
    seen = []
    last = model.distilbert["transformer"].layer[-1]
    hook = last.ffn.register_forward_hook(lambda _module, _given, found: seen.append(len(found)))
    packed_logits(model, tokens_of(np.random.default_rng(8), [3, 40, 7], 300))
    hook.remove()
    assert seen == [3]


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "whole"),
    [
        ("cuda", torch.bfloat16, 0.0, True),
        ("cuda", torch.bfloat16, 0.1, False),
        ("cuda", torch.float32, 0.0, False),
        ("cpu", torch.bfloat16, 0.0, False),
    ],
)
def test_half_precision_on_a_gpu_takes_the_whole_row(
    device: str, dtype: torch.dtype, dropout: float, whole: bool
) -> None:
    assert takes_whole_row(device, dtype, dropout) == whole
