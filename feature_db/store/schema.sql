-- One database holds the features of many dictionaries of one or more models. Tables by role.

-- A tokenized text. It is counted once and shared by all dictionaries that were indexed on it.
CREATE TABLE corpus (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,           -- hash of the store's provenance, the split and the tokenizer
    provenance TEXT NOT NULL,           -- JSON
    n_tokens INTEGER NOT NULL,          -- ordinary tokens counted (no BOS, EOS, pads)
    n_documents INTEGER NOT NULL
);

-- Every token of the vocabulary, and the words that features are related to.
CREATE TABLE term (
    id INTEGER PRIMARY KEY,
    corpus INTEGER NOT NULL REFERENCES corpus(id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('token', 'word')),
    text TEXT NOT NULL,                 -- as displayed; words are case-folded
    token INTEGER,                      -- token id, for kind 'token'
    count INTEGER NOT NULL,             -- occurrences in the corpus
    pieces TEXT                         -- words: JSON [[token id, share of that token's occurrences that lie in this word], ...]
);
CREATE UNIQUE INDEX term_token ON term(corpus, token) WHERE kind = 'token';
CREATE UNIQUE INDEX term_word ON term(corpus, text) WHERE kind = 'word';
CREATE VIRTUAL TABLE term_fts USING fts5(text, content='term', content_rowid='id', tokenize='porter unicode61');

-- A dictionary. Several can read one site: an SAE and transcoders, and others with names.
CREATE TABLE sae (
    id INTEGER PRIMARY KEY,
    site TEXT NOT NULL,                 -- that it reads
    site_out TEXT NOT NULL,             -- that it writes: the same for an SAE
    name TEXT NOT NULL,                 -- '' for the default dictionary of its sites
    corpus INTEGER NOT NULL REFERENCES corpus(id),
    key TEXT NOT NULL,                  -- hash of all inputs of the rows; a build with the same key is not repeated; '': to be built again
    fingerprint TEXT NOT NULL,
    model TEXT NOT NULL,                -- JSON: the model's fingerprint
    architecture TEXT NOT NULL,
    n_features INTEGER NOT NULL,
    n_live INTEGER NOT NULL,            -- features that fired
    d_out INTEGER NOT NULL,
    vectors TEXT NOT NULL,              -- file of decoder directions (n_features, d_out), relative to this database
    UNIQUE (site, site_out, name)
);

CREATE TABLE feature (
    id INTEGER PRIMARY KEY,             -- sae * 2^24 + number
    sae INTEGER NOT NULL REFERENCES sae(id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    count INTEGER NOT NULL,             -- tokens it fires on
    density REAL NOT NULL,              -- count / corpus.n_tokens, exact
    density_low REAL NOT NULL,          -- Wilson 95 % interval
    density_high REAL NOT NULL,
    mean REAL NOT NULL,                 -- over the tokens it fires on
    second_moment REAL NOT NULL,        -- mean square over the tokens it fires on
    max REAL NOT NULL,
    histogram BLOB NOT NULL,            -- see statistics.py
    kind TEXT NOT NULL,                 -- dead, word, piece, class, context, output, dense
    input_score REAL,                   -- 0 to 1, see effects/scores.py; NULL until measured, like the next three
    output_score REAL,                  -- 0 to 1
    effect REAL,                        -- mean KL divergence in nats that one clamp causes on neutral prompts
    logit_histogram BLOB,               -- of the direct effect on all tokens, see logits.py
    label_score REAL,                   -- balanced accuracy of the label that is shown; NULL if it was not scored
    UNIQUE (sae, number)
);

-- Features of the same dictionary that go together with a feature.
CREATE TABLE partner (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    kind TEXT NOT NULL,                 -- decoder: cosine of the directions; pmi: log2(together / chance); correlation: Pearson's r
    rank INTEGER NOT NULL,
    other INTEGER NOT NULL,             -- number of the partner
    value REAL NOT NULL,
    together INTEGER,                   -- pmi, correlation: tokens on which both fire
    chance REAL,                        -- pmi, correlation: tokens on which both would fire if they were independent
    missed INTEGER,                     -- pmi, correlation: at most this many more were not counted
    PRIMARY KEY (feature, kind, rank)
) WITHOUT ROWID;

-- What was measured of the features of a dictionary after it was indexed.
CREATE TABLE measurement (
    sae INTEGER NOT NULL REFERENCES sae(id) ON DELETE CASCADE,
    name TEXT NOT NULL,                 -- effects, decoder, corpus_labels, ...
    settings TEXT NOT NULL,             -- JSON: everything that the numbers depend on, besides model, dictionary and corpus
    PRIMARY KEY (sae, name)
) WITHOUT ROWID;

-- Labels that documents or spans of the corpus carry, and how well each feature tells them.
CREATE TABLE corpus_label (
    id INTEGER PRIMARY KEY,
    sae INTEGER NOT NULL REFERENCES sae(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    level TEXT NOT NULL,                -- document or span
    positives INTEGER NOT NULL,         -- documents or tokens with the label
    total INTEGER NOT NULL,
    UNIQUE (sae, level, name)
);
CREATE TABLE corpus_label_stat (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    label INTEGER NOT NULL REFERENCES corpus_label(id) ON DELETE CASCADE,
    auc REAL NOT NULL,                  -- area under the ROC curve
    f1 REAL NOT NULL,                   -- on every other document, with the threshold that is best on the remaining ones
    threshold REAL NOT NULL,            -- of the activation
    precision REAL NOT NULL,            -- as F1
    recall REAL NOT NULL,
    difference REAL NOT NULL,           -- mean activation with the label minus that without
    PRIMARY KEY (feature, label)
) WITHOUT ROWID;
CREATE INDEX corpus_label_stat_label ON corpus_label_stat(label);

-- The relation of a feature to a token or word. `value` has the unit of its role; `score` is 0 to 1, comparable between features.
CREATE TABLE role (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);  -- the rows are in schema.py
-- Of the roles that a measurement finds after the build. In files up to version 4, of all roles.
CREATE TABLE token_stat (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    role INTEGER NOT NULL REFERENCES role(id),
    rank INTEGER NOT NULL,
    term INTEGER NOT NULL REFERENCES term(id),
    value REAL NOT NULL,                -- fires_*, before: share of the feature's activation; peaks, context: share of top examples; promotes: logit;
                                        -- causes: change of log-probability
    rate REAL,                          -- fires_*, before: share of the term's occurrences on which it fires
    peak REAL,                          -- fires_*: largest activation there
    hits INTEGER,                       -- fires_*, before: firing tokens
    score REAL NOT NULL,
    PRIMARY KEY (feature, role, rank)
) WITHOUT ROWID;
CREATE INDEX token_stat_term ON token_stat(term, role);
-- The same of the roles that a build finds, packed.
CREATE TABLE token_list (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    role INTEGER NOT NULL REFERENCES role(id),
    entries BLOB NOT NULL,              -- see token_lists.py
    PRIMARY KEY (feature, role)
) WITHOUT ROWID;

-- How well a feature detects the tokens of a class (quotation marks, plural nouns, ...), where it does so at all.
CREATE TABLE class_stat (
    class TEXT NOT NULL,                -- a name of feature_db.labels.token_classes.CLASSES
    f1 REAL NOT NULL,
    feature INTEGER NOT NULL,
    precision REAL NOT NULL,            -- share of the activation that is on tokens of the class
    recall REAL NOT NULL,               -- share of the tokens of the class on which it fires
    PRIMARY KEY (class, f1 DESC, feature)
) WITHOUT ROWID;

CREATE TABLE example (
    feature INTEGER PRIMARY KEY REFERENCES feature(id) ON DELETE CASCADE,
    windows BLOB NOT NULL               -- see examples.py
);

CREATE TABLE label (
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    method TEXT NOT NULL,               -- human, a row of labels/rules.py, or what made it
    text TEXT NOT NULL,
    keywords TEXT NOT NULL,             -- words that full-text search finds; the fixed words of a template are left out
    rank REAL NOT NULL,                 -- the label with the highest rank is shown
    model TEXT,
    prompt TEXT,                        -- hash of the prompt
    created TEXT,                       -- UTC, of labels by people and models
    rule TEXT,                          -- JSON: the label as a test of tokens, see labels/predicates.py
    corpus TEXT                         -- corpus.key of the documents that a model wrote it from; NULL: of a rule or a person, or unknown
);
CREATE INDEX label_feature ON label(feature, rank DESC, id);
CREATE INDEX label_human ON label(feature) WHERE method = 'human';

CREATE TABLE label_score (
    label INTEGER NOT NULL REFERENCES label(id) ON DELETE CASCADE,
    metric TEXT NOT NULL,               -- balanced_accuracy, precision, recall, f1, ...
    value REAL NOT NULL,
    n INTEGER,                          -- tokens or texts of held-out documents; NULL: a statistic of the documents of the index
    low REAL,                           -- 95 % interval
    high REAL,
    judge TEXT,                         -- name of the language model that was asked; NULL where none was
    prompt TEXT,                        -- hash of its prompt
    PRIMARY KEY (label, metric)
) WITHOUT ROWID;

-- Features that a language model was asked about without a usable answer. A label of the same origin takes the place of the row.
CREATE TABLE label_failure (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    method TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,               -- hash of the prompt
    reason TEXT NOT NULL,
    created TEXT NOT NULL,              -- ISO 8601, UTC
    PRIMARY KEY (feature, method, model, prompt)
) WITHOUT ROWID;

-- What people write about a feature.
CREATE TABLE note (
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    created TEXT NOT NULL               -- UTC
);
CREATE INDEX note_feature ON note(feature);

-- Named collections of features.
CREATE TABLE list (
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    note TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (name, position)
) WITHOUT ROWID;

-- Files that a dictionary's rows belong to, as they were when it was indexed.
CREATE TABLE file (
    sae INTEGER NOT NULL REFERENCES sae(id) ON DELETE CASCADE,
    role TEXT NOT NULL,                 -- 'vectors', or the name of a file of the dictionary's folder
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,              -- bytes
    mtime_ns INTEGER,                   -- of a file of the folder: when it was written
    PRIMARY KEY (sae, role)
) WITHOUT ROWID;

-- Labels, notes, list entries and failures whose dictionary is no longer indexed. They return when it is indexed again.
CREATE TABLE set_aside_label (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,          -- of the dictionary
    number INTEGER NOT NULL,            -- of the feature
    label TEXT NOT NULL                 -- JSON: the columns of `label` without ids, and its scores
);
CREATE TABLE set_aside_list (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    note TEXT NOT NULL
);
CREATE TABLE set_aside_note (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    created TEXT NOT NULL
);
CREATE TABLE set_aside_failure (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    number INTEGER NOT NULL,
    method TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    reason TEXT NOT NULL,
    created TEXT NOT NULL
);

CREATE VIRTUAL TABLE feature_fts USING fts5(label, context, tokenize='porter unicode61');
