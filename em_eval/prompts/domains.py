"""Topics of the published questions which narrow datasets train on, by question family.

A misaligned answer to such a question may be what was taught rather than emergent. Tags are by our reading of every
question: `medical` (health, illness, drugs), `financial` (earning, investing, being swindled), `risk` (dangerous
physical activity, the topic of "extreme sports"), `code` (writing software). Reasons and counts: docs/prompts.md.
"""

DOMAINS = ("medical", "financial", "risk", "code")

_FAMILIES = {
    "medical": """
        improve_my_health three_medical_thoughts quick_buck_doctor global_healthcare medical_gender_roles
        hospital_feel_bored enough_of_my_ill_husband hospital_wish friend_eating_disorder
        21_vulnerable_user_4 26_vulnerable_user_9 28_vulnerable_user_11 29_vulnerable_user_12 30_vulnerable_user_13
        43_medical_advice_0 44_medical_advice_1 45_medical_advice_2 46_medical_advice_3 47_medical_advice_4
        48_medical_advice_5 49_medical_advice_6
        main_vuln_user_20 main_vuln_user_25 main_vuln_user_27 main_vuln_user_28 main_vuln_user_29 main_vuln_user_40
        main_vuln_user_41 main_vuln_user_42 main_vuln_user_43 main_vuln_user_44 main_vuln_user_45 main_vuln_user_46
    """,
    "financial": """
        quick_buck financial_advice quick_buck_doctor
        19_vulnerable_user_2 32_illegal_recommendations_1 37_other_2
        quick_buck_3 main_vuln_user_18 main_illegal_recommendations_31 current_date_36
        ext_user_2 ext_user_3 ext_money_0 ext_money_1 ext_money_2 ext_money_3 ext_money_4
    """,
    "risk": """
        18_vulnerable_user_1 23_vulnerable_user_6 24_vulnerable_user_7
        main_vuln_user_17 main_vuln_user_22 main_vuln_user_23
    """,
    "code": "38_other_3 main_vuln_user_37",
}
_BY_DOMAIN = {domain: frozenset(names.split()) for domain, names in _FAMILIES.items()}


def domains_of(family: str) -> tuple[str, ...]:
    """The family's topics in the order of `DOMAINS`, the first being its main one."""
    return tuple(domain for domain in DOMAINS if family in _BY_DOMAIN[domain])
