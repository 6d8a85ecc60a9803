def short_and_right(text, record, verdict, finished, n_tokens):
    return verdict.answer_correct * (1.0 if n_tokens < 60 else 0.5)


def brevity(text, record, verdict, finished, n_tokens):
    return -n_tokens / 100
