// Written by docs/generate.py.

/** Report how uncertain an answer is, and act on it. */
export interface InvEntropy {
  name: "inv_entropy";
  /** one of inv_entropy, ni_entropy, nr_inv_entropy, max_py_x, wd_px_py, semantic_entropy, self_consistency, deg_mat, luq, predictive_entropy, mean_entropy, max_entropy, p_true */
  measure?: string;
  /** other measures to report */
  also?: Array<string>;
  /** other wordings of the question */
  perturbations?: number;
  /** answers to each wording */
  replications?: number;
  /** bootstrap draws of one answer for each wording */
  draws?: number;
  /** of these answers, and of paraphrases */
  temperature?: number;
  /** most tokens of these answers */
  answer_tokens?: number;
  /** what is added to the question for them */
  instruction?: string;
  /** how wordings are made */
  perturb?: "paraphrase" | "gaap";
  /** (1+cos)/2 or |cos| of embeddings, entailment both ways, or shared words */
  similarity?: "embedding" | "abs" | "nli" | "words";
  /** a calibration of the configuration; default: the first that fits */
  calibration?: string | null;
  /** act above it: a probability of being wrong, or a score where nothing is calibrated */
  level?: number | null;
  /** what is done above the level */
  then?: "report" | "say" | "engine" | "look_up" | "refuse";
  /** who answers instead */
  engine?: string | null;
  /** where it is looked up */
  collection?: string | null;
  /** what is said behind the answer */
  words?: string;
  /** what is said instead of it */
  refusal?: string;
  /** report wordings, answers and what calibration needs */
  details?: boolean;
}

/** Refuse what rules forbid. */
export interface Safeharbor {
  name: "safeharbor";
  /** guard of the configuration, or the starter set */
  guard?: string;
  /** S_harm below which a request may pass at once */
  low?: number | null;
  /** S_benign above which a request may pass at once */
  high?: number | null;
  /** clusters whose rules are put before the engine */
  rules?: number;
  /** rules in front of the question, or in a call of their own */
  judge?: "prompt" | "verdict";
  /** last turns that are also scored together */
  turns?: number;
  /** also judge the answer, which is then sent as a whole */
  answers?: boolean;
  /** what is said instead */
  refusal?: string;
}

/** Remember whole conversations, and recall them at the grain that fits the question. */
export interface Memgas {
  name: "memgas";
  /** quote earlier conversations in front of the question */
  recall?: boolean;
  /** remember this conversation */
  remember?: boolean;
  /** engine that notes and copies out; null: the answer's own */
  engine?: string | null;
  /** an engine writes summaries and keywords, or words of the conversation are them */
  extraction?: "engine" | "words";
  /** seconds after which a conversation becomes an episode */
  idle?: number;
  /** similarities that the mixture is fitted to */
  candidates?: number;
  /** link with the nearest node alone where a mixture has no two parts */
  wide?: boolean;
  /** how entropies become weights */
  weighting?: "bounded" | "paper";
  /** of the softmax over similarities (lambda) */
  temperature?: number;
  /** nodes at which walks begin (alpha) */
  seeds?: number;
  /** probability of following a link (d) */
  damping?: number;
  /** episodes for a question (k) */
  episodes?: number;
  /** an engine copies out what the question needs, or episodes are quoted whole */
  filter?: "engine" | "none";
  /** words in front of what is quoted */
  instruction?: string;
}

/** Answer with corrected facts where they bear on the question. */
export interface Scr {
  name: "scr";
  /** facts that are candidates */
  top_k?: number;
  /** how the model is asked whether one is needed */
  confirm?: "listwise" | "pointwise" | "probability";
  /** most facts in front of a question */
  statements?: number;
  /** probability that one is needed, from which it is (probability) */
  threshold?: number;
  /** entropy above which the answer does not count (nats, probability) */
  max_entropy?: number | null;
  /** what then: ask about each, or answer without facts */
  uncertain?: "pointwise" | "direct";
  /** cosine below which the model is not asked; null: it always is */
  floor?: number | null;
  /** engine that confirms; null: the answer's own */
  engine?: string | null;
  /** also facts of the key alone, which are for all of its users */
  shared?: boolean;
  /** words in front of what is quoted */
  instruction?: string;
}

/** Remember conversations, and recall what a question needs. */
export interface Simplemem {
  name: "simplemem";
  /** quote memories in front of the question */
  recall?: boolean;
  /** remember what this conversation says */
  remember?: boolean;
  /** engine that plans and writes facts; null: the answer's own */
  engine?: string | null;
  /** facts that an engine writes, or the turns as they are */
  extraction?: "engine" | "turns";
  /** what keeps a window */
  novelty?: "entities" | "surprisal";
  /** of the paper: 2 reads every window, and plans queries and reflects on what they find */
  version?: 1 | 2;
  /** turns of a window; null: 10, in version 2 40 */
  window?: number | null;
  /** turns from one window to the next; null: 5, in version 2 38 */
  stride?: number | null;
  /** novelty from which a window is kept */
  threshold?: number;
  /** weight of new names against a new direction */
  alpha?: number;
  /** keep windows with a new number, date or negation */
  safety_net?: boolean;
  /** seconds after which the rest of a conversation is read, too */
  idle?: number;
  /** merge facts that are close in meaning and time */
  consolidate?: boolean;
  /** affinity from which facts are merged */
  cluster_threshold?: number;
  /** weight of meaning against time in affinity */
  affinity_mix?: number;
  /** how fast affinity falls with time (1/day) */
  decay?: number;
  /** affinity with all facts of a group, or with one */
  linkage?: "complete" | "single";
  /** an engine tells how complex a question is, or its words do */
  plan?: "engine" | "words";
  /** fewest memories for a question */
  least?: number;
  /** most memories for a question */
  most?: number;
  /** memories for the simplest question */
  base?: number;
  /** how their number grows with complexity */
  slope?: number;
  /** weight of the cosine */
  dense_weight?: number;
  /** weight of BM25 */
  lexical_weight?: number;
  /** weight of satisfied conditions */
  symbolic_weight?: number;
  /** words in front of what is quoted */
  instruction?: string;
}

/** Ask back with as few questions as possible. */
export interface CIp {
  name: "c_ip";
  /** a task of the configuration, or one that comes with Waver */
  task?: string;
  /** share of truths that sets may miss */
  alpha?: number;
  /** most questions */
  length?: number;
  /** spread of the scores, and gain (bits), below which it guesses */
  epsilon?: number;
  /** how the next question is chosen */
  select?: "c_ip" | "ip" | "bound" | "random";
  /** where probabilities come from */
  predictor?: "model" | "table";
  /** probability with which an answer is wrong, for the table */
  error?: number;
  /** thresholds of the configuration; default: the first that fit */
  thresholds?: string | null;
  /** questions that a model looks at, drawn from the rest */
  consider?: number;
  /** guess at once, and report what calibration needs */
  predict?: boolean;
}

/** Answer with one of given labels, by the most confident of several views. */
export interface Adte {
  name: "adte";
  /** the labels to choose among */
  labels?: Array<string>;
  /** views of the question */
  views?: number;
  /** share of the views that are averaged */
  keep?: number;
  /** options in another order; or besides, behind a text that is drawn */
  view?: "order" | "reasoned";
  /** how views are ranked */
  measure?: "adte" | "tsallis" | "shannon";
  /** the order of `tsallis` */
  q?: number;
  /** order of the rarest label */
  low?: number;
  /** order of the most frequent label */
  high?: number;
  /** how often this model predicts each label, where it is known */
  prior?: Array<number> | null;
  /** divide the probabilities by the prior as well */
  adjust?: boolean;
  /** keep sure predictions, for the prior of later requests */
  learn?: boolean;
  /** sure predictions before the prior is used */
  warmup?: number;
  /** sure predictions that are kept for each label */
  slots?: number;
  /** logits from the first label to the second of a sure one */
  margin?: number;
  /** what is said before the options */
  instruction?: string;
  /** most tokens of a text of `reasoned` */
  text_tokens?: number;
  /** at which texts of `reasoned` are drawn */
  temperature?: number;
}

/** Draw several answers and give the best. */
export interface EntropyJudger {
  name: "entropy_judger";
  /** runs to draw */
  samples?: number;
  /** the rule that chooses; auto: a vote, and where it is level the judge */
  select?: "auto" | "judge" | "vote" | "min_entropy" | "random" | "oracle";
  /** a judge of the configuration; default: the first that fits */
  judge?: string | null;
  /** stop at the first run that is right with this probability */
  threshold?: number | null;
  /** how calls work together in a run */
  topology?: "single" | "sequential" | "centralized" | "debate" | "hybrid";
  /** rounds of a run; the paper's number is 2 */
  rounds?: number;
  /** engines of roles, or presets, as waver/NAME; others have the request's */
  roles?: Record<string, string>;
  /** at which runs are drawn */
  temperature?: number;
  /** at which runs are drawn */
  top_p?: number;
  /** of the distribution drawn from, or the model's own */
  entropy?: "drawn" | "raw";
  /** how answers are compared */
  answers?: "auto" | "boxed" | "number" | "exact" | "none";
  /** also draw a single solver's run, to compare the runs with */
  reference?: boolean;
  /** report the features and texts of all runs, as training needs */
  features?: boolean;
  /** the right answer, which the oracle knows */
  answer?: string | null;
}

/** Choose how to think by how hard the question is: answer at once, step by step, or only the key route. */
export interface Diffadapt {
  name: "diffadapt";
  /** how to think; auto: a probe decides; shuffled and oracle: for evaluation */
  strategy?: "auto" | "easy" | "normal" | "hard" | "shuffled" | "oracle";
  /** a probe of the configuration; default: the first with these labels that fits */
  probe?: string | null;
  /** the rule of the probe's training labels */
  labels?: "paper" | "strict_easy" | "oracle";
  /** probability of the likeliest class below which it is normal */
  min_confidence?: number;
  /** what is added to the logits of classes */
  bonus?: Record<string, number>;
  /** how an easy question is answered */
  easy?: Easy;
  /** how a normal question is answered */
  normal?: Normal;
  /** how a hard question is answered */
  hard?: Hard;
  /** where no probe can be read */
  fallback?: "refuse" | "draft";
  /** tokens of that draft */
  draft_tokens?: number;
  /** mean entropy below which a draft is easy (nats) */
  draft_easy?: number;
  /** mean entropy above which a draft is hard (nats) */
  draft_hard?: number;
  /** weights with which shuffled draws */
  mix?: Record<string, number>;
  /** the right answer, which the oracle knows */
  answer?: string | null;
}

/** Search for an answer that meets checkable goals, by growing and recombining partial ones. */
export interface Bes {
  name: "bes";
  /** what reads goals from the question; auto: whichever can, `regex` where goals are given */
  task?: "auto" | "sums" | "knights" | "regex";
  /** patterns that the answer has to contain */
  goals?: Array<string>;
  /** a verifier of the configuration that tells which goals an answer meets */
  verifier?: string | null;
  /** an engine that splits the question into sub-questions, as goals */
  propose?: string | null;
  /** most sub-questions */
  proposed?: number;
  /** bidirectional search, or a baseline */
  method?: "bes" | "tree" | "best_of_n";
  /** most iterations (B) */
  iterations?: number;
  /** most tokens that are drawn for the search */
  tokens?: number;
  /** most seconds of the search */
  seconds?: number | null;
  /** at which steps are drawn */
  temperature?: number;
  /** of the tokens that steps are drawn from */
  top_p?: number;
  /** end of a step */
  delimiter?: string;
  /** most steps of one expansion (K_max) */
  expand?: number;
  /** most steps of an answer; then it is finished greedily */
  longest?: number;
  /** temperature of the selection at the beginning (tau_0) */
  hot?: number;
  /** temperature of the selection at the end (tau_1) */
  cold?: number;
}

/** Look things up in a collection only when the model wavers without them. */
export interface LRag {
  name: "l_rag";
  /** where passages are looked for */
  collection?: string | null;
  /** passages in the prompt */
  top_k?: number;
  /** how passages are found */
  mode?: "hybrid" | "dense" | "lexical";
  /** metadata that a passage's document must carry */
  filter?: Record<string, string | number | boolean | Array<string | number | boolean | null> | null>;
  /** documents that the question is about: their summaries open the prompt */
  documents?: Array<string>;
  /** their first sentences, or a summary that the engine writes once */
  summary?: "lead" | "written";
  /** words in front of what is quoted */
  instruction?: string;
  /** what tells whether to look things up */
  gate?: "dragin" | "entropy" | "flare" | "margin" | "seakr" | "self_rag" | "targ" | "always" | "never" | "random";
  /** score above which the gate fires (entropies in nats; flare: a probability, at or below which); null: the gate's own, dragin 1, entropy 0.5, flare 0.8, margin 0.5, seakr -6, self_rag 0.2, targ 0.5 */
  threshold?: number | null;
  /** how the entropies of a draft become one number */
  pooling?: "mean" | "first" | "max" | "prefix_k";
  /** tokens that the pooling prefix_k looks at */
  prefix?: number;
  /** most tokens of a draft; null: the gate's own, 32, dragin 64, flare 64, seakr 100, self_rag 1 */
  draft_tokens?: number | null;
  /** whether a draft ends with its first line, or only with its most tokens */
  draft_end?: "line" | "length";
  /** what targ looks at */
  signal?: "margin" | "entropy" | "variance";
  /** answers that seakr, and targ's variance, draw */
  samples?: number;
  /** share of requests for which random retrieves */
  rate?: number;
  /** share of requests that retrieved in calibration; it is watched */
  expected_rate?: number | null;
}

/** Bring an answer that its limit would cut off to its end, within that limit. */
export interface ForcedAnswer {
  name: "forced_answer";
  /** what announces the answer */
  words?: string;
  /** most tokens that follow the words */
  tokens?: number;
  /** at which they are drawn; null: the request's own */
  temperature?: number | null;
  /** text that ends the answer; a brace counts once those opened behind the words are closed */
  until?: string;
}

/** End a think block that has used up its budget, and let the answer follow. */
export interface ThinkBudget {
  name: "think_budget";
  /** most tokens of the think block */
  tokens?: number;
  /** what ends the thinking, in front of the closing tag */
  words?: string;
}

/** Answer again on the large engine where the small one wavers. */
export interface Cascade {
  name: "cascade";
  /** engine that answers first */
  small?: string;
  /** engine that answers again if the small one was not sure */
  large?: string;
  /** entropy of the answer from which the large engine answers again (nats) */
  threshold?: number;
  /** which quantile of the tokens' entropies is compared; default: their mean */
  quantile?: number | null;
}

/** Switch between a small and a large model, token by token, on the rolling entropy of the next token. */
export interface Ead {
  name: "ead";
  /** engine that writes while the entropy is low */
  small?: string;
  /** engine that writes while the entropy is high */
  large?: string;
  /** rolling mean entropy at which the large engine takes over (nats) */
  threshold?: number;
  /** tokens in the rolling mean */
  window?: number;
  /** tokens after a switch before the next one */
  min_tokens?: number;
  /** whose entropy is watched */
  monitor?: "active" | "small";
  /** whether the entropy at a position decides who writes it, or who writes the next */
  timing?: "eager" | "lagged";
  /** mean below which the small engine takes over again (nats); null: threshold */
  threshold_down?: number | null;
  /** who writes first */
  start?: "small" | "large";
  /** times that the small engine may write the same on end before the large one takes over; 0: any */
  repetition?: number;
}

/** Let the kind of a request, learned from a few examples, decide which engine answers. */
export interface LearnedRoute {
  name: "learned_route";
  /** a router of the configuration; default: the first */
  router?: string | null;
  /** engines of kinds; others go to the request's own engine */
  routes?: Record<string, string>;
  /** entropy (0 to 1) above which the request's own engine answers */
  unsure?: number;
}

/** Let chance decide who writes each token: the control for switching policies. */
export interface RandomSwitch {
  name: "random_switch";
  /** engine that writes the rest */
  small?: string;
  /** engine that writes a share of the tokens */
  large?: string;
  /** share of tokens on the large engine */
  rate?: number;
}

/** Draft a few tokens on the small engine; if their mean entropy is high, the large engine answers instead. */
export interface Route {
  name: "route";
  /** engine that drafts, and answers if it is sure */
  small?: string;
  /** engine that answers from the start if the small one is not sure */
  large?: string;
  /** mean entropy of the draft from which the large engine answers (nats) */
  threshold?: number;
  /** tokens in the draft */
  draft_tokens?: number;
}

/** Draw warmer where the entropy is high and cooler where it is low, around the request's temperature. */
export interface AdaptiveTemperature {
  name: "adaptive_temperature";
  /** how far the temperature goes up and down, as a share */
  span?: number;
  /** entropy (nats) at which it is lowest */
  low?: number;
  /** entropy (nats) at which it is the request's own */
  pivot?: number;
  /** entropy (nats) at which it is highest */
  high?: number;
}

/** Drop image tokens whose heads agree. */
export interface EntropyPrune {
  name: "entropy_prune";
  /** share of the image tokens that remain, on average over all layers */
  keep?: number;
  /** decoder layer in front of which tokens are dropped */
  layer?: number;
  /** score directions alone, not lengths */
  normalise?: boolean;
  /** what chooses the tokens that stay; the others are there to compare with */
  by?: "entropy" | "attention" | "random";
}

/** Keep tokens above a fixed probability. */
export interface Epsilon {
  name: "epsilon";
  /** least probability */
  epsilon?: number;
}

/** Keep tokens above a probability that falls as the entropy grows. */
export interface Eta {
  name: "eta";
  /** threshold where the entropy is low */
  epsilon?: number;
}

/** Keep tokens at least so many times as likely as the most likely one. */
export interface MinP {
  name: "min_p";
  /** least probability, as a part of the largest */
  p?: number;
}

/** Keep the most likely tokens up to a part of the distribution's entropy. */
export interface TopH {
  name: "top_h";
  /** part of the entropy to keep */
  alpha?: number;
  /** entropy terms summed over the top 100 (as released), or of the crop (the paper) */
  form?: "running" | "renormalised";
}

/** Keep logits within so many standard deviations of the largest, whatever the temperature. */
export interface TopNSigma {
  name: "top_n_sigma";
  /** standard deviations of the logits below the largest */
  n?: number;
}

/** Keep the smallest set of most likely tokens with a given mass (nucleus sampling). */
export interface TopP {
  name: "top_p";
  /** mass to keep */
  p?: number;
}

/** Keep the set of tokens that best trades geometry, entropy and mass; sharp at any temperature. */
export interface TopW {
  name: "top_w";
  /** lambda: larger is sharper */
  entropy_weight?: number;
  /** beta: larger keeps more; at most entropy_weight keeps one token */
  mass_weight?: number;
  /** most likely tokens that are looked at */
  pool?: number;
  /** share of the pool's mass in the first set; small lets geometry act */
  warm_mass?: number;
  /** most alternations of potential and set */
  iterations?: number;
  /** distance to a set of tokens */
  potential?: "nearest" | "knn";
  /** members that the k-NN potential averages over */
  neighbours?: number;
  /** distance between two tokens */
  metric?: "cosine" | "chord";
  /** g: weight of the potential; the paper has 1 */
  geometry_scale?: number;
  /** temperature to choose the set at; default: the one to draw at */
  selection_temperature?: number | null;
}

/** Keep the tokens whose surprisal is nearest to the entropy, up to a given mass; may drop the most likely one. */
export interface Typical {
  name: "typical";
  /** mass to keep */
  p?: number;
}

export interface Easy {
  /** words that open the answer */
  words?: string;
  /** leave the think block open, where the model has one */
  think?: boolean;
  /** null: the request's own */
  temperature?: number | null;
  /** null: the request's own */
  top_p?: number | null;
  /** share of the request's max_tokens */
  share?: number;
}

export interface Hard {
  /** words that open the answer */
  words?: string;
  /** leave the think block open, where the model has one */
  think?: boolean;
  /** null: the request's own */
  temperature?: number | null;
  /** null: the request's own */
  top_p?: number | null;
  /** share of the request's max_tokens */
  share?: number;
}

export interface Normal {
  /** words that open the answer */
  words?: string;
  /** leave the think block open, where the model has one */
  think?: boolean;
  /** null: the request's own */
  temperature?: number | null;
  /** null: the request's own */
  top_p?: number | null;
  /** share of the request's max_tokens */
  share?: number;
}

/** A policy with its parameters, as a request names it; one of a plug-in is cast to this type. */
export type Policy =
  | InvEntropy
  | Safeharbor
  | Memgas
  | Scr
  | Simplemem
  | CIp
  | Adte
  | EntropyJudger
  | Diffadapt
  | Bes
  | LRag
  | ForcedAnswer
  | ThinkBudget
  | Cascade
  | Ead
  | LearnedRoute
  | RandomSwitch
  | Route
  | AdaptiveTemperature
  | EntropyPrune
  | Epsilon
  | Eta
  | MinP
  | TopH
  | TopNSigma
  | TopP
  | TopW
  | Typical;
