"""What to do about errors whose sentence only states what is wrong, by words that the sentence holds.

`docs/error_page.py` looks here first, then into the sentence itself. `tests/test_docs.py` fails on words that no error
holds any more.
"""

CURES = {
    # numbers that are not finite
    "‹lost_at": "The sentence names the layer, and the parameter that is broken or the dtype to load the model in.",
    # caches and policies
    "only a Lens can attend to this cache": "Pass it to the Lens that made it: `lens(..., past_key_values=cache)`.",
    "cannot follow a chunked prefill": "Read the prompt in one piece, or in pieces without a mask of your own.",
    "cannot act on the latent attention": "Change or leave out the setting that the words after the colon are about.",
    "has no room for": "Raise `budget`, or lower `sinks`, the recent share and the share of summaries.",
    "caps its attention logits, which a fitted key": "Take another policy that evicts, such as `interp.H2OPrefill`.",
    "together leave no room": "Lower `summaries` or `recent_share`, so that they add up to less than 1.",
    "skip names layer": "Name layers that the model has, or leave `skip` out.",
    "a ledger lists what cache policies evict": "Leave `ledger=True` out, or put a cache policy in force.",
    "sets ‹key› twice": "Leave one of the two out.",
    "a cache policy keeps tokens ‹int(index.min())›":
        "Count places in `stored.whole()`; the newest `recent` tokens are kept without being named.",
    "is not UTF-8, so it is no TOML": "Convert the file to UTF-8; `interp.interventions.save` writes it so.",
    "this is not TOML": "Mend the line that the parser names, or write the file with `interp.interventions.save`.",
    "TOML holds tables":
        'Begin each with `[[intervention]]` and `name = "think"`; `interp.interventions.save` writes it.',
    "cannot be stored":
        "Put the class in a module of `interp/interventions/policies` or `edits`, where it is found again.",
    "cannot act here": "Leave the edit out for this model; the words after the colon say what stands in its way.",
    "this attention mask has holes elsewhere": "Pad on the left only, and read a text with a hole as two texts.",
    'needs a name, as in name = "think"':
        "Add a line `name = ...` to that table, with one of `interp.interventions.available()`.",
    "needs the setting": "Add the setting, as the example in the sentence shows.",
    # explaining
    "asks about policies that decide about": "Ask a question that applies: `questions=None` asks all that do.",
    "the policy dropped no": "Drop more (a higher ratio, a lower budget), or ask of a longer prompt.",
    "attribution: there is no token": "Pass a token of the model's own vocabulary: `lens.to_tokens(text)`.",
    "answers are single tokens":
        "Pass a word that is one token (see `lens.to_str_tokens`), or the number of the token.",
    "explain reads one text at a time": "Pass one row of the tokens: `tokens[:1]`.",
    "explain: the continuation needs": "Pass a longer continuation.",
    "this policy stores all channels":
        "Ask `masks` of a policy that prunes channels, such as `interp.ThinK(ratio=0.5)`.",
    "one of other_prompts is so short": "Leave that prompt out of `other_prompts`, or pass a longer one.",
    "lies outside the": "Name places among the tokens that were fed.",
    # figures and results
    "draws a result of the ‹kind›":
        "Pass the result of that probe, study or question: `interp.probe(lens, text, name)[name]`.",
    "is not in this result": "Choose one of those that the sentence names.",
    "this is the result of one text already": "Use it as it is.",
    "there is no text ‹text›": "Choose a number below the number of texts.",
    "is not a NetCDF result, or is":
        "Run again what wrote it; results are written in one step, so a short file "
    "was copied or changed by something else.",
    "and results of up to": "Save fewer variables, or open the file with xarray.",
    ", or is cut short: ‹said›": "Run again what wrote it.",
    ", or is damaged: ‹why›": "Run again what wrote it.",
    "cannot write": "Choose a folder that exists, has room, and that you may write to.",
    "NetCDF takes strings and numbers": "Make it a string, a number, or a list or dict of them.",
    # models and loading
    "‹refusal(model, attends=bool(watcher.unread))›":
        "The sentence names the model and the feature of its attention that would be lost or wrong. Load it "
    "with `attn_implementation='eager'` where it says so; else take another model.",
    "is an encoder-decoder model": "Take an attention edit, which acts on the decoder, or a decoder-only model.",
    "lists of layers (": "Load the language model of it alone, where transformers has such a class.",
    "times in one pass (": "Take another model; `docs/coverage.md` lists those that a Lens reads.",
    "attention modules, and a Lens has one": "Take another model; `docs/coverage.md` lists those that a Lens reads.",
    "so a column of its attention is no token": "Take another model; `docs/coverage.md` lists those that a Lens reads.",
    "computes other logits while its attention is looked at":
        "Load it with another `attn_implementation`, or take a model that `docs/coverage.md` lists.",
    "compares the attention of all layers": "Take a model all of whose layers attend.",
    "differ in heads": "Take a model whose layers have equally many heads.",
    "is in no list of layers": "Take a model whose decoder layers stand in one `ModuleList`.",
    "turns its last residual stream into logits":
        "Ask for probes that read no logits; the logit lens cannot follow this model.",
    "has no output projection that could be found":
        "Ask for `hook_z`; what a head adds to the residual stream is unknown here.",
    "is neither a LayerNorm nor an RMSNorm": "Ask for the logit lens alone, without direct attribution.",
    "no final norm that could be found": "Compare attention outputs; without the norm no layer can be read out.",
    "would be ignored: this model is loaded already":
        "Leave those arguments out, or give them where the model is loaded.",
    "a .gguf model goes to one device": "Pass `device='cpu'` or `device='cuda:0'` in place of a map.",
    "cannot load ‹what›": "The reason is that of transformers; check the name, the folder and the network.",
    "says that ‹place› is not a number": "Download the model's config.json again, or mend it.",
    "should be a whole number of at least ‹least›; mend": "Download the model's config.json again, or mend it.",
    "where a small number stands": "Download the model's config.json again, or mend it.",
    "asks for a model of": "Download config.json and weights again; they are not of one model.",
    "asks for ‹have› of": "Download config.json and weights again; they are not of one model.",
    "it should say which file holds which tensor": "Download the model's index again.",
    "which is no file of its folder": "Download the model again, from somebody whom you trust.",
    "which is not there; download": "Download the model again.",
    "the weights of ‹name› lack": "Download or save the model again.",
    "cannot read the": "See that the file is there and that you may read it.",
    "which scores, pattern and observables cannot read": "Load the model with `attn_implementation='sdpa'`.",
    # hooks, text, scores
    "this model has no ‹name›": "The words after the colon say why; hook a point that `lens.hook_dict` lists.",
    "the filter matches none": "Print `lens.hook_dict` and name one, such as `'blocks.0.attn.hook_pattern'`.",
    "outside the model's graph": "Hook the pattern, or q and k, whose values carry gradients.",
    "there is no layer": "Count layers from 0.",
    "is computed in single passes": "Call the lens itself, or load the transformers model for `generate`.",
    "is outside the vocabulary": "Tokenise with the Lens' own tokenizer: `lens.to_tokens(text)`.",
    "an attention mask goes with tokens": "Leave the mask out, or pass tokens.",
    "this is text already": "Use it as it is.",
    "save takes one dataset": "Save each by itself: `interp.storage.save(results[name], path)`.",
    "attention_mask has shape": "Pass a mask of the tokens' shape.",
    "attention_mask has a hole": "Cut the text at the hole, and pass two.",
    "has no chat template": "Pass plain text, without `chat=True`, or set `lens.tokenizer.chat_template`.",
    "does not take this conversation": "The reason is the template's own; mend the order or the roles of the messages.",
    "breaks on this: ‹": "The reason is the tokenizer's own; mend its files, or pass tokens.",
    "reads a text otherwise between special tokens": "Pass tokens.",
    "does not generate with these settings": "The reason is that of transformers; change the setting that it names.",
    "the attention mask leaves nothing of row": "Leave that row out.",
    "a padding mask is 1 at tokens": "Pass zeros and ones; masks that are added to scores have four axes.",
    "embeddings have no tokens": "Pass tokens or text.",
    "inputs_embeds should be a tensor": "Pass `lens.model.get_input_embeddings()(tokens)`, or something of its shape.",
    "assisted generation reads tokens": "Leave `names_filter` out, or generate without assistance.",
    "a TransformerBridge reads tokens": "Load the transformers model itself.",
    "there is nothing to score": "Pass a continuation of one token at least.",
    "do not pair up": "Pass as many continuations as prompts.",
    "side_by_side continues one prompt": "Pass one row of tokens, without padding.",
    "text is read by a Lens": "Pass a Lens for texts, and `interp.icl.make_regression(...)` for a regressor.",
    "not text; what a language model learns": "For a language model, see `interp.icl.language`.",
    "has no ‹first›, which ‹probe› needs": "Leave that probe out for this model.",
    "which this probe needs": "Leave that probe out for this model.",
    "lies beyond the text's": "Choose a smaller position, or read more tokens.",
    "there is no position": "Count positions from 0, or from -1 backwards.",
    "of these points have query heads":
        "Name points of one kind: `hook_z` and `hook_rot_q`, or `hook_v` and `hook_rot_k`.",
    "return_type is": "Pass one of those.",
    "bench knows nothing": "Type `interp bench kernels`.",
    # in-context learning
    "the MLPs of": "Take a model whose MLPs are alike in all layers.",
    "implicit update is defined for dense MLPs": "Take a model with dense MLPs.",
    "makes no keys and values of its own": "Take a model all of whose layers project keys and values.",
    "share a label word": "Take two tasks whose label words differ.",
    "names each once": "Pass a permutation of 0 to the number of demonstrations less one.",
    "This layer is the best for": "Make tasks with as many inputs as the layer was made for.",
    "Step sizes cannot be tuned": "Pass tasks whose labels depend on x, with one pair at least.",
    "the labels do not follow the inputs": "Pass tasks whose labels depend on x.",
    "cannot be called": "Pass a function of the number of steps, such as `interp.icl.newton`.",
    "and ‹strange[0]› cannot be": "Pass models and algorithms that can be called so.",
    "and this mapping has none": "Put one algorithm into it at least.",
    "is rolled out on concat tokens": "Take a regressor with `layout='concat'`, without MLP, LayerNorm and clamp.",
    "fit_on is for the read-outs": "Leave `fit_on` out.",
    "attention names ‹len(self.kinds)› layers": "Name one kind for all layers, or one for each.",
    "its layers are of one kind": "Name one kind of attention.",
    "tokens are ‹self.d_in› wide": "Take `layout='concat'`, or fewer targets.",
    "the checkpoint was trained on tasks of": "Train on the same law of tasks, or remove the checkpoint to start anew.",
    "which this version does not know": "Read it with the version that wrote it, or write it again.",
    "these weights are of another model": "Make a regressor with the configuration that the weights were trained with.",
    "values for ‹count› layers": "Give one number, or one for each layer.",
    "an exact predictor needs": "Make such a regressor: `RegressorConfig(d_in=..., n_ctx=...)` is one.",
    "interpolation needs": "Make such a regressor: one head, and one layer or a recurrent one.",
    "The best step lies outside": "Scale x or y so that the best step lies within.",
    "A covariance of": "Pass one number, or a matrix of that shape.",
    "have no predictor in x": "Compare predictions and sensitivities (`interp.icl.align`) instead.",
    "this dataset is no result of a study": "Pass what `study.run` returned, or wrote as `result.nc`.",
    "needs demonstrations and a query, and none of them empty":
        "Pass one demonstration at least, and a query with text.",
    "three_runs takes at least one recipe": "Name one of the recipes that the sentence lists.",
    "it takes at least one of each": "Make tasks anew: `interp.icl.make_regression(1000, N=10, d=5)`.",
    "n_layers and n_heads are at least 1": "Raise the one that is below, or leave it out, for it has a default.",
    "d_mlp and n_pos_enc at least 0":
        "Pass 0 for no MLP or no code of positions, and None for `d_in + d_out` channels.",
    # kernels
    "stored heads do not divide": "Pass query heads that are a multiple of the stored heads.",
    "no mask fact is called": "Pass one of `causal`, `window`, `offset`, `key_mask` and the others of `MaskFacts`.",
    "differ in G": "Pass a rule with as many columns as there are groups.",
    "keys has no slot": "Make room for the new token's key first: the last slot is its place.",
    "segments is empty": "Pass one segment at least, with the newest tokens' keys in the last.",
    "q holds no query": "Pass one query at least.",
    "softcap should be positive": "Pass the model's own cap, or None, which leaves logits as they are.",
    "groups_removed should lie in": "Name groups that `groups` holds, or raise `group_count`.",
    ": groups should lie in 0": "Number the groups from 0, or raise `group_count`.",
    ": channels should lie in 0": "Count channels from 0; x has as many as its last axis is long.",
    "the last segment holds": "Put the keys of all queries into the last segment, or pass fewer queries.",
    # the explorer
    "is no name or number of a machine": "Leave `--address` out, or give a number of this machine.",
    "is not an address of this machine": "Leave `--address` out, or give a number of this machine, or 0.0.0.0 for all.",
}  # fmt: skip
