"""The TOFU evaluation as public code does it: for every metric a pass of its own over the data.

Batches are padded and come in the order of the file, logits are made for every position and every token, wrong answers
go through the model with their question each, answers are generated until the whole batch is done, and adapters compute
their change anew in every pass.
"""

import zlib

import torch
import torch.nn.functional as F


def padded_logits(model, tokenizer, examples, batch_size):
    """Batches of examples, their logits and their labels, both shifted to each other."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        longest = max(len(example.input_ids) for example in batch)
        input_ids = torch.full((len(batch), longest), tokenizer.pad_token_id or 0)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for row, example in enumerate(batch):
            length = len(example.input_ids)
            input_ids[row, :length] = torch.tensor(example.input_ids)
            attention_mask[row, :length] = 1
            labels[row, example.num_prompt_tokens : length] = input_ids[row, example.num_prompt_tokens : length]
        with torch.no_grad():
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        yield batch, logits[:, :-1], labels[:, 1:]


def padded_nll(model, tokenizer, examples, batch_size):
    """Summed NLL of each example."""
    found = []
    for _, logits, labels in padded_logits(model, tokenizer, examples, batch_size):
        # Row by row, and not over the middle axis of (E, V, T) as public code does: on a CPU torch then adds up the
        # vocabulary one by one in float32, which takes about 5e-5 nats from every label.
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        found += losses.view(labels.shape).sum(dim=1).tolist()
    return found


def padded_flags(model, tokenizer, examples, batch_size):
    """Of each example, whether each label is the most likely token."""
    found = []
    for batch, logits, labels in padded_logits(model, tokenizer, examples, batch_size):
        right = logits.argmax(dim=-1) == labels
        found += [right[row][labels[row] != -100].tolist() for row in range(len(batch))]
    return found


def padded_distributions(model, tokenizer, examples, batch_size):
    """Of each example, log-probability of each label, and mean and variance of a drawn token's."""
    found = []
    for batch, logits, labels in padded_logits(model, tokenizer, examples, batch_size):
        log_probabilities = logits.log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        mean = (probabilities * log_probabilities).sum(dim=-1)
        variance = (probabilities * log_probabilities.square()).sum(dim=-1) - mean.square()
        for row in range(len(batch)):
            keep = labels[row] != -100
            chosen = log_probabilities[row][keep].gather(1, labels[row][keep][:, None])[:, 0]
            found.append((chosen.tolist(), mean[row][keep].tolist(), variance[row][keep].tolist()))
    return found


def generated_in_whole_batches(model, tokenizer, examples, *, batch_size, max_new_tokens):
    """Greedy answers; every row of a batch goes on until all have ended."""
    answers = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = [example.input_ids[: example.num_prompt_tokens] for example in batch]
        longest = max(map(len, prompts))
        input_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends = torch.tensor([example.end_token for example in batch])
        done, columns, cache = torch.zeros(len(batch), dtype=torch.bool), [], None
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            with torch.no_grad():
                outputs = model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            cache, token = outputs.past_key_values, outputs.logits[:, -1].argmax(dim=-1)
            done |= token == ends
            columns.append(token)
            if done.all():
                break
            input_ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
        for row, tokens in enumerate(torch.stack(columns, dim=1).tolist()):
            end = int(ends[row])
            kept = tokens[: tokens.index(end)] if end in tokens else tokens
            answers.append(tokenizer.decode(kept, skip_special_tokens=True).strip())
    return answers


def evaluate_by_metric(model, tokenizer, sets, *, batch_size, max_new_tokens, clock):
    """All values that TOFU and the membership attacks are made from, a pass for each.

    Args:
        model: The model with its adapters, not merged.
        tokenizer: Its tokenizer.
        sets: Examples with alternatives by name: forget, retain, real_authors, world_facts and, perhaps, holdout.
        batch_size: Answers per pass.
        max_new_tokens: Longest generated answer.
        clock: Context manager of a name; it measures what is done under it.
    """
    found = {}

    def measure(name, kind, function, examples, **options):
        with clock(kind):
            found[name] = function(model, tokenizer, examples, batch_size=batch_size, **options)

    for name, examples in sets.items():
        if name == "holdout":
            continue
        measure(f"{name} probability", "probability", padded_nll, examples)
        if all(example.paraphrased is not None for example in examples):
            paraphrased = [example.paraphrased for example in examples]
            measure(f"{name} paraphrased", "truth ratio", padded_nll, paraphrased)
        num_wrong = min(len(example.perturbed) for example in examples)
        for place in range(num_wrong):
            wrong = [example.perturbed[place] for example in examples]
            measure(f"{name} perturbed {place}", "truth ratio", padded_nll, wrong)
        measure(f"{name} answers", "generation", generated_in_whole_batches, examples, max_new_tokens=max_new_tokens)
    measure("forget strength", "extraction strength", padded_flags, sets["forget"])
    measure("forget memorization", "exact memorization", padded_flags, sets["forget"])
    for name in ("forget", "holdout"):
        if name in sets:
            measure(f"{name} loss", "attack loss", padded_nll, sets[name])
            measure(f"{name} zlib", "attack zlib", padded_nll, sets[name])
            found[f"{name} bytes"] = [len(zlib.compress(example.answer.encode())) for example in sets[name]]
            measure(f"{name} min_k", "attack Min-K", padded_distributions, sets[name])
            measure(f"{name} min_k_plus_plus", "attack Min-K++", padded_distributions, sets[name])
    return found
