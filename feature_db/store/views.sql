-- Views for SQL queries. Join them on feature_id, which is fast; ref is made for each row. They are made for each query in the
-- temporary schema, so that no file can change what they mean.

-- Dictionaries.
CREATE TEMP VIEW dictionaries AS
SELECT dictionary_of(sae.id) AS dictionary, site, site_out, name_of(sae.id) AS name, architecture, n_features AS features, n_live AS live,
    d_out AS width, corpus.n_tokens AS tokens, corpus.n_documents AS documents
FROM main.sae JOIN main.corpus ON corpus.id = sae.corpus;

-- Features, with the label that is shown.
CREATE TEMP VIEW features AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, dictionary_of(sae) AS dictionary, number,
    kind, count, density, density_low,
    density_high, mean, max, input_score, output_score, effect,
    (SELECT text FROM main.label WHERE label.feature = feature.id ORDER BY rank DESC, label.id LIMIT 1) AS label,
    (SELECT method FROM main.label WHERE label.feature = feature.id ORDER BY rank DESC, label.id LIMIT 1) AS label_source,
    label_score
FROM main.feature;

-- All labels, each with its scores as JSON {metric: value}.
CREATE TEMP VIEW labels AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, method AS label_source, text AS label, model,
    prompt, rank, created, rule,
    (SELECT json_group_object(metric, value) FROM main.label_score WHERE label_score.label = label.id) AS scores
FROM main.label JOIN main.feature ON feature.id = label.feature;

-- Scores of labels. Those with n were measured on held-out documents. judge, prompt: the language model asked, and a hash of what.
CREATE TEMP VIEW scores AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, method AS label_source, text AS label,
    metric, value, n, low, high, judge,
    label_score.prompt AS prompt
FROM main.label_score JOIN main.label ON label.id = label_score.label JOIN main.feature ON feature.id = label.feature;

-- Notes by people.
CREATE TEMP VIEW notes AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, text AS note, created
FROM main.note JOIN main.feature ON feature.id = note.feature;

-- Words and tokens of features, by role: fires_word, fires_token, peaks, before, context, promotes, suppresses, causes.
CREATE TEMP VIEW words AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, role.name AS role, term.text AS word, value,
    rate, peak, hits AS count, score
FROM main.token_stat JOIN main.feature ON feature.id = token_stat.feature JOIN main.role ON role.id = token_stat.role
JOIN main.term ON term.id = token_stat.term
UNION ALL
SELECT 'feature:' || dictionary_of(sae) || '/' || number, feature.id, role.name, term.text, json_extract(entry.value, '$[1]'),
    json_extract(entry.value, '$[3]'), json_extract(entry.value, '$[4]'), json_extract(entry.value, '$[5]'),
    json_extract(entry.value, '$[2]')
FROM main.token_list JOIN main.feature ON feature.id = token_list.feature JOIN main.role ON role.id = token_list.role
JOIN json_each(entries_of(token_list.entries)) AS entry JOIN main.term ON term.id = json_extract(entry.value, '$[0]');

-- Classes of tokens that features detect (quotation marks, plural nouns, ...). precision: share of the activation in the class.
CREATE TEMP VIEW classes AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, class_stat.class AS class, precision, recall, f1
FROM main.class_stat JOIN main.feature ON feature.id = class_stat.feature;

-- Example texts as JSON [{"bucket", "document", "position", "peak", "tokens": [...], "values": [...]}, ...].
CREATE TEMP VIEW examples AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, dictionary_of(sae) AS dictionary, number,
    examples_of(sae, windows) AS examples
FROM main.example JOIN main.feature ON feature.id = example.feature;

-- Histograms of activations as JSON {"edges": [...], "counts": [...]}.
CREATE TEMP VIEW histograms AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, dictionary_of(sae) AS dictionary, number,
    histogram_of(histogram) AS histogram
FROM main.feature;

-- Histograms of the direct effect on the logits of all tokens, as the same JSON.
CREATE TEMP VIEW logit_histograms AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, dictionary_of(sae) AS dictionary, number,
    logits_of(logit_histogram) AS histogram
FROM main.feature WHERE logit_histogram IS NOT NULL;

-- Features of one dictionary that go together, by kind: decoder (value is a cosine), pmi, correlation.
CREATE TEMP VIEW partners AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, partner.kind AS kind, rank,
    'feature:' || dictionary_of(sae) || '/' || other AS partner, value, together, chance, missed
FROM main.partner JOIN main.feature ON feature.id = partner.feature;

-- Labels that documents (or spans) of the corpus carry, and the features that tell them best.
CREATE TEMP VIEW corpus_labels AS
SELECT 'feature:' || dictionary_of(feature.sae) || '/' || number AS ref, feature.id AS feature_id, corpus_label.name AS label, level,
    auc, f1, threshold, precision, recall,
    difference, positives, total
FROM main.corpus_label_stat JOIN main.corpus_label ON corpus_label.id = corpus_label_stat.label
JOIN main.feature ON feature.id = corpus_label_stat.feature;

-- Features that a language model was asked about without a usable answer.
CREATE TEMP VIEW failures AS
SELECT 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, method AS label_source, model, prompt,
    reason, created
FROM main.label_failure JOIN main.feature ON feature.id = label_failure.feature;

-- Lists by people.
CREATE TEMP VIEW lists AS
SELECT list.name AS list, position, 'feature:' || dictionary_of(sae) || '/' || number AS ref, feature.id AS feature_id, note
FROM main.list JOIN main.feature ON feature.id = list.feature;
