"""What an export says about itself: a line for each file, and the two readmes."""

from __future__ import annotations

ABOUT: dict[str, dict[str, str]] = {
    "agent_versions": {
        "": "Tools that your app has declared for its conversations.",
        "hash": "what `agent_version` of sessions refers to",
    },
    "consents": {
        "": "What you have agreed to, and withdrawn.",
        "text_hash": "SHA-256 of the text that you were shown",
        "client": "the app that you agreed in",
    },
    "goals": {"": "Your goals."},
    "health_activity_summaries": {"": "Activity rings, one object a day and upload."},
    "health_days": {
        "": "Daily figures that were computed from the samples.",
        "samples": "how many samples they were computed from; 0: there was nothing",
        "time_zone": "which days are meant",
    },
    "health_quantities": {"": "Health samples with a value: steps, heart rate, weight and so on."},
    "health_sleep": {"": "Health samples of sleep."},
    "health_sources": {"": "Apps and devices that samples come from."},
    "health_workouts": {"": "Workouts."},
    "messages": {
        "": "The conversations: what you wrote, what the agent answered, what its tools found.",
        "content": "blocks, as the model was given them and gave them back",
        "n": "place in the session",
    },
    "model_calls": {
        "": "Each time your messages were sent to the model, and what it cost.",
        "charged": "millionths of a US dollar",
        "reserved": "millionths of a US dollar",
        "request_id": "the provider's name for the call",
    },
    "profiles": {"": "Your profile."},
    "segments": {
        "": "The events that were streamed to your devices; they are deleted after a while.",
        "event": "an AG-UI event; null where a server was replaced in mid-answer",
        "through": "where a server was replaced: the number of the last message that was complete",
        "cursor": "place in the session's stream",
    },
    "sessions": {
        "": "Your conversations with agents.",
        "agent_version": "which version of the agent (hash)",
    },
    "spending": {
        "": "What your use has cost, by day and month, in millionths of a US dollar.",
        "agent": "which agent; empty: all of them",
    },
    "tool_calls": {
        "": "What agents asked your devices to do, or asked your permission for, and the answers."
    },
    "turns": {
        "": "Each message that you sent, and what answering it took.",
        "cost_usd_micros": "millionths of a US dollar",
    },
}
"""Table -> column -> description; the one under `""` describes the file."""

README = """\
What is this?

This archive holds everything that myHealth Agents stores about you (GDPR Article 15: access,
Article 20: data portability). Every file NAME.jsonl is plain text in UTF-8 with one JSON object a
line; it can be read by any programming language, by most spreadsheets and with a text editor.

    manifest.json   when it was made, for which user, which files there are and how many rows each has
    schema.json     what each field is (JSON Schema 2020-12)
    *.jsonl         the data

Times are in UTC (ISO 8601), health values in the unit that is named beside them. Technical fields
that say nothing about you (positions in logs, hashes by which repeated requests are recognised) are
left out.

Your address for signing in is held by our authentication provider (Supabase), not in this database;
the app shows it. Not included are server logs (no contents, deleted after a short time) and backups
(copies of this).

This file holds health data. Keep it where nobody else reads it.
"""

LIESMICH = """\
Was ist das?

Dieses Archiv enthält alles, was myHealth Agents über Sie gespeichert hat (DSGVO Artikel 15:
Auskunft, Artikel 20: Datenübertragbarkeit). Jede Datei NAME.jsonl ist reiner Text in UTF-8 mit
einem JSON-Objekt je Zeile; sie lässt sich mit jeder Programmiersprache, mit den meisten
Tabellenprogrammen und mit einem Texteditor lesen.

    manifest.json   wann und für wen es erstellt wurde, welche Dateien es gibt und wie viele Zeilen jede hat
    schema.json     was jedes Feld bedeutet (JSON Schema 2020-12)
    *.jsonl         die Daten

Zeiten stehen in UTC (ISO 8601), Gesundheitswerte in der Einheit, die daneben steht. Technische
Felder, die nichts über Sie sagen (Positionen in Protokollen, Prüfsummen, an denen wiederholte
Anfragen erkannt werden), fehlen.

Ihre Adresse für die Anmeldung liegt bei unserem Anmeldedienst (Supabase) und nicht in dieser
Datenbank; die App zeigt sie an. Nicht enthalten sind Serverprotokolle (ohne Inhalte, nach kurzer
Zeit gelöscht) und Sicherungskopien (Kopien dieser Daten).

Diese Datei enthält Gesundheitsdaten. Bewahren Sie sie so auf, dass niemand sonst sie liest.
"""
