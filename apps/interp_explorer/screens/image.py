"""A picture and a question: where each word looks, who looks at a patch, sinks, and the answer with these changed."""

from functools import partial

import streamlit as st

from interp import figures
from interp.errors import InterpError
from interp_explorer import address, changing, charts, looking, patches, pictures, subject, view, waiting
from interp_explorer.looking import Asked
from interp_explorer.text import plain

SEES = "emoji-vlm"
QUESTION = "What is at the bottom?"
LONGEST_QUESTION = 1_000  # characters, which an address can hold
LEAST_SHARE = 0.05  # of the slider of τ
FOUND, TEXTS, TYPED = "this question", f"{looking.TEXTS} texts", "typed"

view.begin("Image")
st.title("Image")
model, dtype = subject.chosen_model()
lens = subject.lens_on(model, dtype)


def take_a_model_that_sees() -> None:
    waiting.clicked()
    st.session_state["model"] = SEES


def take_threshold(share: float) -> None:
    waiting.clicked()
    st.session_state["tau_rel"] = min(max(share, LEAST_SHARE), 1.0)


if lens.anatomy.unseen is not None:
    why = f": {lens.anatomy.unseen}" if lens.processor is not None else ""
    st.info(plain(f"{lens.cfg.model_name} reads text and sees nothing{why}; {SEES}, which is here, sees pictures."))
    st.button(f"Take {SEES}", key="take", on_click=take_a_model_that_sees, type="primary")
    st.stop()

left, right = st.columns([2, 3])
with left:
    picture = pictures.choose()
    steps = int(
        st.number_input(
            "New tokens", 1, 256, 12, key=address.number("new_tokens"), bind="query-params", on_change=waiting.clicked
        )
    )
with right:
    question = (
        st.text_area(
            "Question", QUESTION, key="question", max_chars=LONGEST_QUESTION, height=90, bind="query-params",
            on_change=waiting.clicked,
        )
        or ""
    )  # fmt: skip
    chat = looking.talks(lens) and st.toggle(
        "Through the chat template", True, key="chat_template", bind="query-params", on_change=waiting.clicked
    )
    spoken = st.empty()
if not question.strip():
    st.error("The question is empty: ask something.")
    st.stop()
asked = Asked(model, dtype, picture, question, steps, chat)
answer, begins = looking.answered(lens, asked)
with spoken.container():
    st.caption("Answer")
    st.code(answer or "(nothing)", language=None, wrap_lines=True)

words_at, sinks_at = st.container(), st.container()
beside = {"picture": picture.image}

with sinks_at:
    st.subheader("Visual sinks")
    st.caption(
        "Tokens of which a few channels outgrow all others. The threshold τ is a share of √d, d being the width."
    )
    one, two = st.columns(2)
    source = one.segmented_control(
        "Sink channels from", [FOUND, TEXTS, TYPED], key="channels_from", default=FOUND, required=True,
        bind="query-params", on_change=waiting.clicked,
    )  # fmt: skip
    tau_rel = two.slider(
        "τ as a share of √d", LEAST_SHARE, 1.0, 0.3125, 0.0125, key=address.number("tau_rel"), bind="query-params",
        on_change=waiting.clicked,
    )  # fmt: skip
    if source == TYPED:
        line = st.text_input(
            "Channels", "", key="channels", placeholder="1415, 2533", bind="query-params", on_change=waiting.clicked
        )
        try:
            channels = looking.channels_in(line or "", lens.cfg.d_model)
        except InterpError as error:
            st.error(plain(str(error)))
            channels = ()
    else:
        channels = looking.sink_channels(lens, asked, texts=source == TEXTS)
    named = ", ".join(map(str, channels)) or "none: those that stand out in a layer are taken there"
    st.caption(f"Channels: {named}")
    agreed = looking.threshold(lens, asked, channels) if channels else None
    if agreed is not None and abs(agreed - tau_rel) > 1e-6:
        st.button(
            f"Take τ = {agreed:g} √d, from which attention piles up on tokens", key="agreed",
            on_click=take_threshold, args=(agreed,),
        )  # fmt: skip
    sinks = looking.sinks(lens, asked, answer, channels, tau_rel)

with words_at:
    st.subheader("Where a word looks")
    one, two, three = st.columns(3)
    with one:
        layer = subject.choose_layer(lens.cfg)
    with two:
        head = subject.choose_head(lens.cfg.n_heads)
    looks = looking.attention(lens, asked, answer, head)
    positions = [str(position) for position in looks["query"].values]
    with three:
        word = int(looking.chosen("Word, by its position", "word", positions, at_first=str(begins)))
    st.caption(f"Click a word to see where it looks. The answer begins after {begins}, which chooses its first word.")
    charts.show(
        figures.image_words, looks, result="image_attention", key="words", take=looking.take_word, query=word,
        layer=layer, characters=charts.CHARACTERS,
    )  # fmt: skip
    given = st.text_input(
        "Patches, by the positions of their tokens", "", key="patches", placeholder="17-20, 24", bind="query-params",
        help="Or click in the picture below. Empty: the whole image.",
    )  # fmt: skip
    try:
        chosen = looking.patches_of(looks, given or "")
    except InterpError as error:
        st.error(plain(str(error)))
        chosen = []
    st.caption(
        "Click a patch to see who looks at it. For several, choose Box Select at the upper right of the picture."
    )
    row = looks["attention"].sel(query=word)
    row = row.mean("layer") if layer is None else row.sel(layer=layer)
    shares = [f"{value:.2%} of its attention" for value in row.values]
    charts.show(
        figures.image_attention, looks, result="image_attention", key="looks", take=patches.take, box=True,
        targets=partial(patches.with_targets, ds=looks, chosen=chosen, said=shares),
        beside=beside | {"sinks": sinks}, query=word, layer=layer,
    )  # fmt: skip
    st.subheader("Who looks at the patch" if len(chosen) == 1 else "Who looks there")
    one, two = st.columns(2)
    with one:
        charts.show(
            figures.patch_words, looks, result="image_attention", key="readers", take=looking.take_bar,
            patches=chosen or None, layer=layer,
        )  # fmt: skip
    with two:
        charts.show(
            figures.patch_heads, looks, result="image_attention", key="heads", take=charts.take_head,
            patches=chosen or None,
        )  # fmt: skip
    known = ("image_words", "image_attention", "patch_words", "patch_heads")
    charts.show_others(looks, "image_attention", *known, beside=beside, query=word, layer=layer)

with sinks_at:
    for sentence in looking.findings("visual_sinks", sinks):
        st.markdown(f"- {plain(sentence)}")
    charts.show(figures.phi_in_picture, sinks, result="visual_sinks", key="phi", beside=beside, layer=layer)
    charts.show_others(sinks, "visual_sinks", "phi_in_picture", beside=beside, folded=True, layer=layer)

spec = changing.side_by_side(lens, asked, channels, tau_rel, chosen)
if spec is not None:
    both = looking.changed(lens, asked, answer, head, spec)
    charts.show(
        figures.image_attention_change, both, result="before_after", key="changed", beside=beside, query=word,
        layer=layer,
    )  # fmt: skip

st.subheader("More about this picture")
possible = looking.more("image_attention", "visual_sinks")
for name in st.multiselect("Probes", possible, key="more", bind="query-params", on_change=waiting.clicked):
    result = looking.others(lens, asked, answer, name)
    with st.container(border=True):
        st.subheader(plain(str(result.attrs["title"])))
        for sentence in looking.findings(name, result):
            st.markdown(f"- {plain(sentence)}")
        charts.show_others(result, name, beside=beside, layer=layer)
