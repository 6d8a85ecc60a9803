"""A second `texts.resolve`, from the grammar alone: character by character, and by what follows from what.

    control    := "<subgoal> " WORDS "." | "<backward> " WORDS "." | "<verify> " WORDS ". " ("ok" | "not")
                | "<backtrack> " LETTER "."
    definition := "Define " NAME " as " LETTER "; " EQUATIONS "."

WORDS are 1 to 400 characters, EQUATIONS 1 to 1000, none of them `<`, `>` or a full stop, nor, in a subgoal
or backward, `=`; a NAME is 1 to 200, and has no `=` and no `;` either. White space or the end follows. They are read from left to right up to the answer. A sentence
that goes takes one space before it along. `<backtrack> v` takes away the last definition of v that stands; and while
there is one that stands after a definition taken away and holds its letter, that one too.
"""

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def closed(text, at):
    """Whether a sentence can end here."""
    return at >= len(text) or text[at].isspace()


def words(text, at, most, banned="<>."):
    """Where the words that begin here end: at the full stop after 1 to `most` of them; or None."""
    end = at
    while end < len(text) and text[end] not in banned:
        end += 1
    return end if end < len(text) and text[end] == "." and 1 <= end - at <= most else None


def control(text, at):
    """→ (kind, end, letter) or None."""
    for kind in ("subgoal", "backward", "verify", "backtrack"):
        tag = f"<{kind}> "
        if not text.startswith(tag, at):
            continue
        start = at + len(tag)
        stop = words(text, start, 400, "<>.=" if kind in ("subgoal", "backward") else "<>.")
        if stop is None:
            return None
        if kind == "verify":
            for word in (" ok", " not"):
                if text.startswith(word, stop + 1) and closed(text, stop + 1 + len(word)):
                    return kind, stop + 1 + len(word), None
            return None
        if kind == "backtrack" and (stop != start + 1 or text[start] not in LETTERS):
            return None
        return (kind, stop + 1, text[start]) if closed(text, stop + 1) else None
    return None


def definition(text, at):
    """→ ("define", end, its letter, all its letters) or None."""
    if not text.startswith("Define ", at) or (at and (text[at - 1].isalnum() or text[at - 1] == "_")):
        return None
    stop = words(text, at + 7, 10**9)
    if stop is None or not closed(text, stop + 1):
        return None
    body = text[at + 7 : stop]
    for k in range(1, min(200, len(body) - 6) + 1):
        if body[k - 1] in "=;":
            return None
        if body[k : k + 4] == " as " and body[k + 4] in LETTERS and body[k + 5 : k + 7] == "; ":
            fits = 1 <= len(body) - k - 7 <= 1000
            return ("define", stop + 1, body[k + 4], lone(body[k + 7 :]) | {body[k + 4]}) if fits else None
    return None


def lone(text):
    """The letters that are no part of a word."""
    padded, out = f" {text} ", set()
    for before, letter, after in zip(padded, padded[1:], padded[2:]):
        if letter in LETTERS and not {before, after} & {*LETTERS, "'"}:
            out.add(letter)
    return out


def resolve(text):
    """→ the plain chain."""
    marks = [text.find(mark) for mark in ("Answer:", "<answer>", "</solution>")]
    end = min([len(text), *(at for at in marks if at >= 0)])
    body, at, found = text[:end], 0, []
    while at < end:
        start = at + (body[at] == " ")
        sentence = control(body, start) or definition(body, start)
        if sentence:
            found.append((at, *sentence))
            at = sentence[1]
        else:
            at += 1
    gone, backtracks = set(), 0
    for i, (_, kind, _, letter, *_) in enumerate(found):
        if kind != "define":
            gone.add(i)
        if kind == "backtrack":
            backtracks += 1
            of_it = [
                j for j in range(i) if j not in gone and found[j][1] == "define" and found[j][3] == letter
            ]
            if of_it:
                taken = take_away(found, of_it[-1], [j for j in range(of_it[-1], i) if j not in gone])
                gone |= taken
    if backtracks > 3:
        return ""
    keep = [True] * len(text)
    for i in gone:
        keep[found[i][0] : found[i][2]] = [False] * (found[i][2] - found[i][0])
    return "".join(letter for letter, kept in zip(text, keep) if kept)


def take_away(found, first, standing):
    taken = {first}
    while True:
        more = {
            j
            for j in standing
            if j not in taken
            and found[j][1] == "define"
            and any(i < j and found[i][3] in found[j][4] for i in taken)
        }
        if not more:
            return taken
        taken |= more
