import pytest

from data.sources.emoji_words import words


@pytest.mark.parametrize(
    ("text", "short_name", "caption", "concept"),
    [
        ("🌋", ":volcano:", "volcano", "volcano"),
        ("🇯🇵", ":Japan:", "flag of japan", "flag of japan"),
        ("🇺🇸", ":United_States:", "flag of the united states", "flag of the united states"),
        ("🇷🇪", ":Réunion:", "flag of réunion", "flag of réunion"),
        ("🇸🇯", ":Svalbard_&_Jan_Mayen:", "flag of svalbard and jan mayen", "flag of svalbard and jan mayen"),
        ("🇱🇨", ":St._Lucia:", "flag of saint lucia", "flag of saint lucia"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", ":England:", "flag of england", "flag of england"),
        ("🏴", ":black_flag:", "black flag", "black flag"),
        ("👋🏽", ":waving_hand_medium_skin_tone:", "waving hand, medium skin tone", "waving hand"),
        (
            "🏃",
            ":man_running_facing_right_medium-dark_skin_tone:",
            "man running, facing right, medium-dark skin tone",
            "man running",
        ),
        (
            "👩",
            ":woman_dark_skin_tone_red_hair:",
            "woman with red hair, dark skin tone",
            "woman with red hair",
        ),
        ("👨", ":man_bald_light_skin_tone:", "bald man, light skin tone", "bald man"),
        (
            "🤝",
            ":handshake_dark_skin_tone_light_skin_tone:",
            "handshake, dark and light skin tones",
            "handshake",
        ),
        (
            "💏",
            ":kiss_woman_man_dark_skin_tone_dark_skin_tone:",
            "kiss, woman and man, dark skin tone",
            "kiss, woman and man",
        ),
        ("💋", ":kiss_mark:", "kiss mark", "kiss mark"),
        ("😗", ":kissing_face:", "kissing face", "kissing face"),
        ("🎊", ":confetti_ball:", "confetti ball", "confetti ball"),
        (
            "👪",
            ":family_man_woman_girl_girl:",
            "family with a man, a woman and two girls",
            "family with a man, a woman and two girls",
        ),
        ("🏽", ":medium_skin_tone:", "medium skin tone swatch", "skin tone swatch"),
        ("♈", ":Aries:", "aries zodiac sign", "aries zodiac sign"),
        ("🕜", ":one-thirty:", "clock showing one thirty", "clock showing one thirty"),
        ("👒", ":woman\u2019s_hat:", "woman's hat", "woman's hat"),
        ("🅰", ":A_button_(blood_type):", "blood type a button", "blood type a button"),
        ("🆙", ":UP!_button:", "up button", "up button"),
    ],
)
def test_words(text: str, short_name: str, caption: str, concept: str) -> None:
    found = words(short_name, text)
    assert (found.caption, found.concept) == (caption, concept)
