"""The words of the French, German and Spanish stories, each beside the English word it translates.

A noun is stored with its article; a German noun that changes in the accusative after a slash (der Komet/Kometen). An adjective
that follows the gender stands as masculine/feminine.
"""

from __future__ import annotations

LANGUAGES = ("french", "german", "spanish")

# topic -> (nouns, verbs in the present, adjectives); columns: English, French, German, Spanish (verbs: no English)
NOUNS: dict[str, str] = {
    "animals": """cat, le chat, die Katze, el gato;
        dog, le chien, der Hund, el perro;
        horse, le cheval, das Pferd, el caballo;
        cow, la vache, die Kuh, la vaca;
        rabbit, le lapin, das Kaninchen, el conejo;
        duck, le canard, die Ente, el pato""",
    "food": """apple, la pomme, der Apfel, la manzana;
        pear, la poire, die Birne, la pera;
        cake, le gâteau, der Kuchen, el pastel;
        carrot, la carotte, die Karotte, la zanahoria;
        tomato, la tomate, die Tomate, el tomate;
        cookie, le biscuit, der Keks, la galleta""",
    "music": """violin, le violon, die Geige, el violín;
        guitar, la guitare, die Gitarre, la guitarra;
        piano, le piano, das Klavier, el piano;
        flute, la flûte, die Flöte, la flauta;
        drum, le tambour, die Trommel, el tambor;
        trumpet, la trompette, die Trompete, la trompeta""",
    "sport": """ball, le ballon, der Ball, el balón;
        racket, la raquette, der Schläger, la raqueta;
        helmet, le casque, der Helm, el casco;
        medal, la médaille, die Medaille, la medalla;
        trophy, le trophée, der Pokal, el trofeo;
        glove, le gant, der Handschuh, el guante""",
    "weather": """rain, la pluie, der Regen, la lluvia;
        snow, la neige, der Schnee, la nieve;
        wind, le vent, der Wind, el viento;
        cloud, le nuage, die Wolke, la nube;
        storm, la tempête, der Sturm, la tormenta;
        fog, le brouillard, der Nebel, la niebla""",
    "sea": """boat, le bateau, das Boot, el barco;
        shark, le requin, der Hai, el tiburón;
        salmon, le saumon, der Lachs, el salmón;
        beach, la plage, der Strand, la playa;
        harbor, le port, der Hafen, el puerto;
        wave, la vague, die Welle, la ola""",
    "kitchen": """spoon, la cuillère, der Löffel, la cuchara;
        fork, la fourchette, die Gabel, el tenedor;
        knife, le couteau, das Messer, el cuchillo;
        pan, la poêle, die Pfanne, la sartén;
        cup, la tasse, die Tasse, la taza;
        bottle, la bouteille, die Flasche, la botella""",
    "space": """moon, la lune, der Mond, la luna;
        sun, le soleil, die Sonne, el sol;
        rocket, la fusée, die Rakete, el cohete;
        galaxy, la galaxie, die Galaxie, la galaxia;
        planet, la planète, der Planet/Planeten, el planeta;
        comet, la comète, der Komet/Kometen, el cometa""",
    "garden": """rose, la rose, die Rose, la rosa;
        tulip, la tulipe, die Tulpe, el tulipán;
        violet, la violette, das Veilchen, la violeta;
        oak, le chêne, die Eiche, el roble;
        pine, le pin, die Kiefer, el pino;
        bush, le buisson, der Busch, el arbusto""",
    "machines": """car, la voiture, das Auto, el coche;
        truck, le camion, der Lastwagen, el camión;
        hammer, le marteau, der Hammer, el martillo;
        wheel, la roue, das Rad, la rueda;
        engine, le moteur, der Motor, el motor;
        drill, la perceuse, der Bohrer, el taladro""",
    "school": """pencil, le crayon, der Bleistift, el lápiz;
        pen, le stylo, der Füller, el bolígrafo;
        ruler, la règle, das Lineal, la regla;
        notebook, le cahier, das Heft, el cuaderno;
        book, le livre, das Buch, el libro;
        eraser, la gomme, der Radiergummi, la goma""",
    "money": """coin, la pièce, die Münze, la moneda;
        bill, la facture, die Rechnung, la factura;
        loan, le prêt, der Kredit, el préstamo;
        salary, le salaire, der Lohn, el salario;
        cheque, le chèque, der Scheck, el cheque;
        wallet, le portefeuille, der Geldbeutel, la cartera""",
}
VERBS: dict[str, str] = {
    "animals": "nourrit, füttert, alimenta; caresse, streichelt, acaricia",
    "food": "goûte, probiert, prueba; partage, teilt, comparte",
    "music": "écoute, hört, escucha; accorde, stimmt, afina",
    "sport": "attrape, fängt, atrapa; lance, wirft, lanza",
    "weather": "sent, spürt, siente; craint, fürchtet, teme",
    "sea": "admire, bewundert, admira; dessine, zeichnet, dibuja",
    "kitchen": "lave, wäscht, lava; sèche, trocknet, seca",
    "space": "photographie, fotografiert, fotografía; observe, beobachtet, observa",
    "garden": "plante, pflanzt, planta; arrose, gießt, riega",
    "machines": "répare, repariert, repara; vérifie, prüft, revisa",
    "school": "oublie, vergisst, olvida; apporte, holt, trae",
    "money": "reçoit, erhält, recibe; demande, verlangt, pide",
}
# topic -> adjectives that say something of its nouns
ADJECTIVES: dict[str, str] = {
    "animals": "wild, sauvage, wild, salvaje",
    "food": "sweet, sucré/sucrée, süß, dulce",
    "music": "loud, bruyant/bruyante, laut, ruidoso/ruidosa",
    "sport": "shiny, brillant/brillante, glänzend, brillante",
    "weather": "cold, froid/froide, kalt, frío/fría; normal, normal/normale, normal, normal",
    "sea": "dangerous, dangereux/dangereuse, gefährlich, peligroso/peligrosa",
    "kitchen": "practical, pratique, praktisch, práctico/práctica",
    "space": "magnificent, magnifique, prächtig, magnífico/magnífica",
    "garden": "beautiful, beau/belle, schön, hermoso/hermosa",
    "machines": "modern, moderne, modern, moderno/moderna",
    "school": "useful, utile, nützlich, útil",
    "money": "secret, secret/secrète, geheim, secreto/secreta",
}
SIZELESS = ("weather",)  # topics whose nouns have no size
UNOWNED = ("weather", "sea", "space")  # topics whose nouns nobody has, finds or loses
COLOURED = ("animals", "kitchen", "machines", "music", "school", "sport")  # topics whose nouns may have any colour
COLOURS = """red, rouge, rot, rojo/roja; white, blanc/blanche, weiß, blanco/blanca; black, noir/noire, schwarz, negro/negra;
    yellow, jaune, gelb, amarillo/amarilla"""
SIZES = "big, grand/grande, groß, grande; small, petit/petite, klein, pequeño/pequeña; huge, énorme, riesig, enorme"
FAMILY = """mother, sa mère, Mutter, su madre; father, son père, Vater, su padre;
    brother, son frère, Bruder, su hermano; sister, sa soeur, Schwester, su hermana"""
# feeling -> the adjective after "very", another one, and a verb
FEELINGS: dict[str, str] = {
    "happiness": """happy, heureux/heureuse, glücklich, feliz;
        glad, content/contente, froh, contento/contenta;
        -, sourit, lacht, sonríe""",
    "sadness": """sad, triste, traurig, triste;
        unhappy, malheureux/malheureuse, betrübt, infeliz;
        -, pleure, weint, llora""",
    "anger": """angry, furieux/furieuse, wütend, furioso/furiosa;
        annoyed, fâché/fâchée, verärgert, enojado/enojada;
        -, crie, schreit, grita""",
    "fear": """scared, effrayé/effrayée, ängstlich, asustado/asustada;
        nervous, inquiet/inquiète, besorgt, nervioso/nerviosa;
        -, tremble, zittert, tiembla""",
}
# The first is no home, and nobody goes for a walk in the last.
PLACES = """in the park, dans le parc, im Park, en el parque; in the village, dans le village, im Dorf, en el pueblo;
    in the town, dans la ville, in der Stadt, en la ciudad; in the house, dans la maison, im Haus, en la casa"""
TIMES: dict[str, tuple[str, ...]] = {
    "french": ("Ce matin", "Ce soir", "Cette nuit"),
    "german": ("Am Morgen", "Am Abend", "In der Nacht"),
    "spanish": ("Esta mañana", "Esta tarde", "Esta noche"),
}

# In every list below, the last frame is never seen in training.
HELDOUT = 1
OPENINGS: dict[str, tuple[str, ...]] = {
    "french": (
        "{Time} {name} est {place} avec {kin}.",
        "{name} habite {home} avec {kin}.",
        "{Time} {name} marche {outside}.",
        "{name} est {place}.",
        "{Time} {name} marche avec {kin} {outside}.",
    ),
    "german": (
        "{Time} ist {name} mit {with_kin} {place}.",
        "{name} wohnt mit {with_kin} {home}.",
        "{Time} geht {name} {outside} spazieren.",
        "{name} ist {place}.",
        "{Time} geht {name} mit {with_kin} {outside} spazieren.",
    ),
    "spanish": (
        "{Time} {name} está {place} con {kin}.",
        "{name} vive {home} con {kin}.",
        "{Time} {name} camina {outside}.",
        "{name} está {place}.",
        "{Time} {name} camina con {kin} {outside}.",
    ),
}
EVENTS: dict[str, tuple[str, ...]] = {
    "french": (
        "{He} {v1} {the1}.",
        "{He} {v1} {the1} et {v2} {the2}.",
        "{The1} est {adj1}.",
        "{Kin} aime {the1}.",
        "Puis {he} {v1} {the2}.",
        "{He} voit {the1} avec {kin}.",
        "{He} voit {the1} et {the2}.",
        "{The1} est {adj1} et {nom2} est {adj2}.",
        "Puis {kin} {v1} {the1}.",
    ),
    "german": (
        "{He} {v1} {the1}.",
        "{He} {v1} {the1} und {v2} {the2}.",
        "{The1} ist {adj1}.",
        "{Kin} mag {the1}.",
        "Dann {v1} {he} {the2}.",
        "{He} sieht {the1} mit {with_kin}.",
        "{He} sieht {the1} und {the2}.",
        "{The1} ist {adj1} und {nom2} ist {adj2}.",
        "Dann {v1} {kin} {the1}.",
    ),
    "spanish": (
        "{He} {v1} {the1}.",
        "{He} {v1} {the1} y {v2} {the2}.",
        "{The1} es {adj1}.",
        "{Kin} mira {the1}.",
        "Luego {he} {v1} {the2}.",
        "{He} ve {the1} con {kin}.",
        "{He} ve {the1} y {the2}.",
        "{The1} es {adj1} y {nom2} es {adj2}.",
        "Luego {kin} {v1} {the1}.",
    ),
}
CAUSES: dict[str, dict[str, tuple[str, ...]]] = {
    "french": {
        "happiness": (
            "{Kin} donne un cadeau.",
            "{He} gagne un prix.",
            "Puis {he} trouve un cadeau.",
            "Puis {kin} gagne un prix.",
        ),
        "sadness": (
            "{He} perd un ami.",
            "{Kin} part pour toujours.",
            "Puis {he} perd un cadeau.",
            "Puis {kin} part pour toujours.",
        ),
        "anger": (
            "{Kin} ment encore.",
            "Un voleur prend un cadeau.",
            "Puis {kin} rompt une promesse.",
            "Puis un voleur ment encore.",
        ),
        "fear": (
            "{He} entend un bruit étrange.",
            "Une ombre suit {name}.",
            "Puis un monstre arrive.",
            "Puis un bruit étrange suit {name}.",
        ),
    },
    "german": {
        "happiness": (
            "{Kin} bringt ein Geschenk.",
            "{He} gewinnt einen Preis.",
            "Dann findet {he} ein Geschenk.",
            "Dann gewinnt {kin} einen Preis.",
        ),
        "sadness": (
            "{He} verliert einen Freund.",
            "{Kin} geht für immer.",
            "Dann verliert {he} ein Geschenk.",
            "Dann geht {kin} für immer.",
        ),
        "anger": ("{Kin} lügt wieder.", "Ein Dieb nimmt ein Geschenk.", "Dann lügt {kin}.", "Dann lügt ein Dieb wieder."),
        "fear": (
            "Ein seltsames Geräusch kommt.",
            "Ein Schatten folgt {name}.",
            "Dann kommt ein Monster.",
            "Dann folgt ein Monster {name}.",
        ),
    },
    "spanish": {
        "happiness": (
            "{Kin} da un regalo.",
            "{He} gana un premio.",
            "Luego {he} encuentra un regalo.",
            "Luego {kin} gana un premio.",
        ),
        "sadness": (
            "{He} pierde a un amigo.",
            "{Kin} se va para siempre.",
            "Luego {he} pierde un regalo.",
            "Luego {kin} se va para siempre.",
        ),
        "anger": (
            "{Kin} miente otra vez.",
            "Un ladrón toma un regalo.",
            "Luego {kin} rompe una promesa.",
            "Luego un ladrón miente otra vez.",
        ),
        "fear": (
            "{He} oye un ruido extraño.",
            "Una sombra sigue a {name}.",
            "Luego llega un monstruo.",
            "Luego un ruido extraño sigue a {name}.",
        ),
    },
}
FELT: dict[str, str] = {"french": "{He} est très {main}.", "german": "{He} ist sehr {main}.", "spanish": "{He} está muy {main}."}
REACTIONS: dict[str, tuple[str, ...]] = {
    "french": ("{name} est {feel} et {did}.", "{He} {did} avec {kin}.", "{He} {did} et est {feel}."),
    "german": ("{name} ist {feel} und {did}.", "{He} {did} mit {with_kin}.", "{He} {did} und ist {feel}."),
    "spanish": ("{name} está {feel} y {did}.", "{He} {did} con {kin}.", "{He} {did} y está {feel}."),
}
ENDINGS: dict[str, tuple[str, ...]] = {
    "french": ("{Time} {he} parle avec {kin}.", "Puis {he} rentre {home}.", "Puis {he} parle avec {kin}."),
    "german": ("{Time} spricht {he} mit {with_kin}.", "Dann ist {he} wieder {place}.", "Dann spricht {he} mit {with_kin}."),
    "spanish": ("{Time} {he} habla con {kin}.", "Luego {he} está otra vez {place}.", "Luego {he} habla con {kin}."),
}
# Aligned sentences: (English, French, German, Spanish); the last ones are never seen in training
ALIGNED: tuple[tuple[str, str, str, str], ...] = (
    ("{name} sees {the1}.", "{name} voit {the1}.", "{name} sieht {the1}.", "{name} ve {the1}."),
    ("{name} has {the1}.", "{name} a {the1}.", "{name} hat {the1}.", "{name} tiene {owned1}."),
    ("{name} finds {the1}.", "{name} trouve {the1}.", "{name} findet {the1}.", "{name} encuentra {the1}."),
    ("{name} loses {the1}.", "{name} perd {the1}.", "{name} verliert {the1}.", "{name} pierde {the1}."),
    ("{The1} is {adj1}.", "{The1} est {adj1}.", "{The1} ist {adj1}.", "{The1} es {adj1}."),
    (
        "{name} has {the1} and {the2}.",
        "{name} a {the1} et {the2}.",
        "{name} hat {the1} und {the2}.",
        "{name} tiene {owned1} y {owned2}.",
    ),
    ("{name} is {feel}.", "{name} est {feel}.", "{name} ist {feel}.", "{name} está {feel}."),
    ("{name} is {place}.", "{name} est {place}.", "{name} ist {place}.", "{name} está {place}."),
    (
        "{name} sees {the1} and {the2}.",
        "{name} voit {the1} et {the2}.",
        "{name} sieht {the1} und {the2}.",
        "{name} ve {the1} y {the2}.",
    ),
)
MARKERS: dict[str, tuple[str, ...]] = {
    "french": ("le", "la", "un", "une", "est", "et", "il", "elle", "avec", "dans", "sa", "son", "ce", "cette", "puis"),
    "german": (
        "der",
        "die",
        "das",
        "den",
        "ein",
        "eine",
        "einen",
        "ist",
        "und",
        "er",
        "sie",
        "mit",
        "im",
        "in",
        "sein",
        "seine",
        "ihr",
        "ihre",
        "dann",
    ),
    "spanish": ("el", "la", "al", "un", "una", "es", "está", "y", "él", "ella", "con", "en", "su", "esta", "luego"),
}
