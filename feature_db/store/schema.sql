-- One database holds the features of many dictionaries of one or more models. Tables by role.

-- A tokenized text. It is counted once and shared by all dictionaries that were indexed on it.
CREATE TABLE corpus (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,           -- hash of the store's provenance, the split and the tokenizer
    provenance TEXT NOT NULL,           -- JSON
    n_tokens INTEGER NOT NULL,          -- ordinary tokens counted (no BOS, EOS, pads)
    n_documents INTEGER NOT NULL
);

-- Every token of the vocabulary, and the words that a row of token_stat refers to.
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
    UNIQUE (sae, number)
);

-- The relation of a feature to a token or word. `value` has the unit of its role; `score` is 0 to 1, comparable between features.
CREATE TABLE role (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);  -- the rows are in schema.py
CREATE TABLE token_stat (
    feature INTEGER NOT NULL REFERENCES feature(id) ON DELETE CASCADE,
    role INTEGER NOT NULL REFERENCES role(id),
    rank INTEGER NOT NULL,
    term INTEGER NOT NULL REFERENCES term(id),
    value REAL NOT NULL,                -- fires_*, before: share of the feature's activation; peaks, context: share of top examples; promotes: logit
    rate REAL,                          -- fires_*, before: share of the term's occurrences on which it fires
    peak REAL,                          -- fires_*: largest activation there
    hits INTEGER,                       -- fires_*, before: firing tokens
    score REAL NOT NULL,
    PRIMARY KEY (feature, role, rank)
) WITHOUT ROWID;
CREATE INDEX token_stat_term ON token_stat(term, role);

-- How well a feature detects the tokens of a class (quotation marks, plural nouns, ...), where it does so at all.
CREATE TABLE class_stat (
    class TEXT NOT NULL,                -- a name of feature_db.labels.token_classes.CLASSES
    f1 REAL NOT NULL,
    feature INTEGER NOT NULL,
    precision REAL NOT NULL,            -- share of the firing tokens that are in the class
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
    method TEXT NOT NULL,               -- human, words, pieces, class, context, before, promotes; later: llm, ...
    text TEXT NOT NULL,
    keywords TEXT NOT NULL,             -- words that full-text search finds; the fixed words of a template are left out
    rank REAL NOT NULL,                 -- the label with the highest rank is shown
    model TEXT,
    prompt TEXT                         -- hash of the prompt
);
CREATE INDEX label_feature ON label(feature, rank DESC, id);

CREATE TABLE label_score (
    label INTEGER NOT NULL REFERENCES label(id) ON DELETE CASCADE,
    metric TEXT NOT NULL,               -- precision, recall, f1, ...
    value REAL NOT NULL,
    n INTEGER,
    low REAL,
    high REAL,
    PRIMARY KEY (label, metric)
) WITHOUT ROWID;

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

-- Labels and list entries whose dictionary is no longer indexed. They return when it is indexed again.
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

CREATE VIRTUAL TABLE feature_fts USING fts5(label, context, tokenize='porter unicode61');
