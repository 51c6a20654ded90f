"""Tables: VICIdial's database, as the chapters use it: one method for each thing that is asked or written.

Laws:
    * What is said to the server is in ``sql``, what its answers mean in ``reading``.
    * Settings are read once for a time to live. What calls in progress want of the same tables at the
      same moment shares a statement, and each gets what is his.
    * A write bears repetition after a lost connection: it sets what it says, or has a key, or its second
      form looks first whether the row is there.
    * Text is compared as the columns compare it, without case. An empty code is nobody's: nothing is
      looked for by it.

``FOUND_ROWS`` is on: a count is of rows matched, not changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from pymysql import err
from pymysql.constants import ER

from fastagi_pool.caching import Cached
from fastagi_pool.database import Answer
from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.executor import Done
from fastagi_pool.grouping import Grouping
from fastagi_pool.handlers.vicidial import sql
from fastagi_pool.handlers.vicidial.leg import NEVER
from fastagi_pool.handlers.vicidial.reading import (
    Found,
    first,
    fold,
    number,
    read_call,
    read_campaign,
    read_closer,
    read_lead,
    read_log,
    read_system,
    share_sights,
    text,
)
from fastagi_pool.handlers.vicidial.rows import (
    NO_SERVER,
    NO_SYSTEM,
    AltPhone,
    CallLogRow,
    Campaign,
    CarrierRow,
    CloserRow,
    DropRow,
    HopperRow,
    Lead,
    LeadWords,
    LegKey,
    LogRow,
    NewCall,
    NewLog,
    QuotaCall,
    QuotaRow,
    Recording,
    Server,
    Sight,
    System,
)

if TYPE_CHECKING:
    from gevent.event import AsyncResult

    from fastagi_pool.database import Statement
    from fastagi_pool.executor import Executor
    from fastagi_pool.handlers.vicidial.classification import PhoneQuestion
    from fastagi_pool.handlers.vicidial.leg import Moment

Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Taken(Enum):
    """Whether a request has deleted a call from those that are alive."""

    YES = "it has"
    NO = "another request was first"
    PERHAPS = "it failed, or the connection was lost: nobody knows, and somebody must go on"


#: What of the call in progress could not be written; set anew for each call. None outside of calls.
lost_rows: ContextVar[list[str] | None] = ContextVar("lost_rows", default=None)


class Closing(NamedTuple):
    """The end of a call, to be written.

    Attributes:
        uniqueid: The row of ``call_log`` that ends; empty for none.
        channel: What its channel becomes.
        now: When it ended.
        popups: Unique ids whose rows of ``live_inbound`` go.
        before: Statements of this call that come first.
    """

    uniqueid: str
    channel: str
    now: Moment
    popups: tuple[str, ...]
    before: tuple[Statement, ...] = ()


class Tables:
    """VICIdial's database, for all calls of a worker.

    Args:
        executor: Carries statements out.
        server_ip: Our own address.
        settings_ttl_s: How long settings are good for; 0 reads them for each use.
        log: Told of statements that failed for good.
    """

    def __init__(self, executor: Executor, server_ip: str, settings_ttl_s: float, log: Log) -> None:
        self._executor = executor
        self._log = log
        self._server_ip = server_ip
        passes_on = (DatabaseUnavailable,)
        self._sights = Grouping(self._look, passes_on)
        self._dialled = Grouping(self._find_dialled, passes_on)
        self._inserts = Grouping(self._insert_calls, passes_on)
        self._closings = Grouping(self._close_calls, passes_on)
        self._site = Cached(self._read_site, settings_ttl_s)
        self._campaigns = Cached(self._read_campaign, settings_ttl_s)
        self._phones = Cached(self._read_phone, settings_ttl_s)
        self._settings = Cached(self._read_setting, settings_ttl_s)

    # --- settings

    def site(self) -> tuple[Server, System]:
        """Give our row of ``servers`` and the row of ``system_settings``; defaults where there is none."""
        return self._site.get("")

    def campaign(self, campaign_id: str) -> Campaign | None:
        """Give a campaign's row."""
        return self._campaigns.get(campaign_id)

    def knows_phone(self, question: PhoneQuestion) -> bool:
        """Tell whether a phone of this server is registered so."""
        return self._phones.get(question)

    def resets_lead(self, in_group: str) -> bool:
        """Tell whether an in-group wants leads of abandoned calls to be dialled again."""
        return "Y" in text(first(self._settings.get((sql.LEAD_RESET, in_group))))

    def list_threshold(self, list_id: int) -> int | None:
        """Give how many calls end the dialling of alternates in a list; None without a row."""
        found = first(self._settings.get((sql.LIST_THRESHOLD, list_id)))
        return None if found is None else int(found)

    def campaign_lists(self, campaign_id: str) -> list[int]:
        """Give the lists of a campaign."""
        return [int(row[0]) for row in self._settings.get((sql.CAMPAIGN_LISTS, campaign_id))]

    def container(self, container_id: str) -> str | None:
        """Give the text of a settings container; None if there is no such."""
        rows = self._settings.get((sql.CONTAINER, container_id))
        return text(rows[0][0]) if rows else None

    def phone_code(self, country_code: str, area_code: str) -> tuple[str, str]:
        """Give state and country of an area code; empty if it is not known."""
        rows = self._settings.get((sql.PHONE_CODE, country_code, area_code))
        return (text(rows[0][0]), text(rows[0][1])) if rows else ("", "")

    def postal_state(self, postal_code: str) -> str:
        """Give the state of a postal code; empty if it is not known."""
        return text(first(self._settings.get((sql.POSTAL_STATE, postal_code))))

    def _read_site(self, _: str) -> tuple[Server, System]:
        # The first question of every call: nothing is begun yet, so a server that is away is not waited for.
        questions: list[Statement] = [(sql.SERVER, (self._server_ip,)), (sql.SYSTEM, ())]
        servers, systems = (answer.rows for answer in self._executor.run(questions).answers)
        server = Server(*map(text, servers[0])) if servers else NO_SERVER
        return server, read_system(systems[0]) if systems else NO_SYSTEM

    def _read_campaign(self, campaign_id: str) -> Campaign | None:
        rows = self._rows(sql.CAMPAIGN, campaign_id)
        return read_campaign(rows[0]) if rows else None

    def _read_phone(self, question: PhoneQuestion) -> bool:
        query = sql.PHONE_BY_EXTENSION if question.column.value == "extension" else sql.PHONE_BY_NUMBER
        return bool(self._rows(query, self._server_ip, question.value, question.protocol)[0][0])

    def _read_setting(self, question: tuple[object, ...]) -> Found:
        return self._rows(str(question[0]), *question[1:])

    # --- START

    def campaign_of_code(self, code: str) -> str:
        """Give the campaign for which a call with this code is alive; empty if there is none."""
        return self._dialled.ask(code)

    def manager_lines(self, code: str) -> tuple[str, str]:
        """Give two lines of the order that placed this call; empty if there is none."""
        rows = self._rows(sql.MANAGER, code)
        return (text(rows[0][0]), text(rows[0][1])) if rows else ("", "")

    def insert_call(self, call: NewCall) -> AsyncResult[None]:
        """Insert an open row; an existing one with its unique id stays as it is.

        Returns:
            What to wait for; the row is committed then.
        """
        return self._inserts.submit(call)

    def _find_dialled(self, codes: Sequence[str]) -> list[str]:
        if len(codes) == 1 or not all(map(str.isascii, codes)):
            return [text(first(self._rows(sql.DIALLED, code))) for code in codes]
        rows = self._rows(sql.DIALLED_IN, tuple(codes))
        found: dict[str, str] = {}
        for code, campaign_id in rows:
            found.setdefault(fold(code), text(campaign_id))
        return [found.get(fold(code), "") for code in codes]

    def _insert_calls(self, calls: Sequence[NewCall]) -> list[None]:
        # Sorted, so that two workers do not lock the same rows in opposite order.
        rows = sorted(calls, key=_by_uniqueid)
        values = ",".join([sql.CALL_VALUES] * len(rows))
        self._write((sql.INSERT_CALL + values, [value for row in rows for value in row]))
        return [None] * len(calls)

    # --- END: what is known

    def look(self, key: LegKey) -> Sight:
        """Read what is known of a call that ends: one round trip, shared with others."""
        return self._sights.ask(key)

    def manual_legs(self, stem: str, lead_id: int, code: str) -> tuple[str, list[CallLogRow]]:
        """Look for the legs of a manual call.

        Args:
            stem: How the unique id of a leg of the same second begins.
            lead_id: Whose call.
            code: Its caller code; not empty.

        Returns:
            The unique id of a leg of the same second and lead, one of the same code before others, empty
            for none; and all rows of the code, in the order of their unique ids.
        """
        others, legs = self._ask(
            (sql.OTHER_LEG, (sql.beginning(stem), f"%{lead_id}", code)), (sql.CALLS_BY_CODE, ((code,),))
        )
        # Only the newest: a code that is a caller's name may have very many.
        return text(first(others)), [read_call(row) for row in reversed(legs)]

    def call(self, uniqueid: str) -> CallLogRow | None:
        """Give a row of ``call_log``."""
        rows = self._rows(sql.CALLS_BY_ID, (uniqueid,))
        return read_call(rows[0]) if rows else None

    def is_live(self, channel: str) -> bool:
        """Tell whether a channel is alive, as another program saw it last."""
        return bool(self._rows(sql.LIVE_CHANNELS, channel)[0][0])

    def campaign_of_log(self, uniqueid: str) -> str:
        """Give the campaign of an outbound call; empty if there is no row."""
        return text(first(self._rows(sql.LOG_BY_ID, uniqueid)))

    def find_logs(
        self, lead_id: int, stem: str, since: str, prefer: str = "", until: str = NEVER
    ) -> tuple[LogRow | None, CloserRow | None]:
        """Look for the rows of an answered call.

        Args:
            lead_id: Whose call.
            stem: How the unique id of an outbound row begins; empty to look for none.
            since: Inbound rows are younger.
            prefer: The unique id whose inbound row is taken before the newest; empty for none.
            until: Inbound rows are not younger.
        """
        closer: Statement = (sql.FIND_CLOSER, (lead_id, since, until))
        if prefer:
            closer = (sql.FIND_OWN_CLOSER, (lead_id, since, until, prefer))
        if not stem:
            (closers,) = self._ask(closer)
            return None, read_closer(closers)
        logs, closers = self._ask((sql.FIND_LOG, (lead_id, sql.beginning(stem))), closer)
        return read_log(logs), read_closer(closers)

    def carrier_cause(self, code: str, lead_id: int) -> tuple[int, str]:
        """Give what the dialer knows of how the carrier ended the newest dial; 0 and empty for nothing."""
        rows = self._rows(sql.CARRIER_CAUSE, code, lead_id, self._server_ip)
        return (number(rows[0][0]), text(rows[0][1])) if rows else (0, "")

    def newest_recording(self, uniqueid: str) -> Recording | None:
        """Give the newest recording of a call."""
        rows = self._rows(sql.NEWEST_RECORDING, uniqueid)
        return Recording(int(rows[0][0]), number(rows[0][1]), text(rows[0][2])) if rows else None

    def cpd_result(self, code: str) -> str:
        """Give what the call progress detection heard, if it was no voice; empty for nothing."""
        return text(first(self._rows(sql.CPD_RESULT, code)))

    def open_monitor(self, code: str) -> int | None:
        """Give the epoch at which a manager began to listen; None if no row is open."""
        rows = self._rows(sql.MONITOR, code)
        return number(rows[0][0]) if rows else None

    def three_way_status(self, code: str) -> str | None:
        """Give the status of an outside agent's call; None if there is no row."""
        rows = self._rows(sql.THREE_WAY, code)
        return text(rows[0][0]) if rows else None

    def _look(self, keys: Sequence[LegKey]) -> list[Sight]:
        if len(keys) > 1 and not all(key.uniqueid.isascii() and key.code.isascii() for key in keys):
            # Which of several other texts a column takes for equal, only the server knows.
            return [self._look([key])[0] for key in keys]
        codes = tuple({key.code for key in keys if key.code}) or (None,)
        uids = tuple({key.uniqueid for key in keys})
        doubles = tuple(f"{uid}99" for uid in uids)
        answers = self._ask(
            (sql.PARKED, (codes,)),
            (sql.PARKED_RECENTLY, (codes,)),
            (sql.CALLS_BY_ID, (uids + doubles,)),
            (sql.PARK_ROWS, (uids, self._server_ip)),
            (sql.AUTO_CALLS_BY_ID, (uids,)),
            (sql.AUTO_CALLS_BY_CODE, (codes,)),
        )
        return share_sights(keys, answers)

    # --- END: writes

    def close(self, closing: Closing) -> None:
        """Write the end of a call: one round trip, shared with others."""
        if self._closings.ask(closing):
            _note_loss("something of its end")

    def close_double(self, uniqueid: str, now: Moment) -> None:
        """End the second row that a name-recording script made."""
        self._write_each((sql.CLOSE_DOUBLE, (now.text, now.epoch, now.epoch, now.epoch, uniqueid)))

    def close_recording(self, recording: Recording, now: Moment) -> None:
        """End a recording."""
        length_s = now.epoch - recording.start_epoch
        values = (now.text, now.epoch, length_s, minutes(length_s), recording.recording_id)
        self._write_each((sql.CLOSE_RECORDING, values))

    def close_park(
        self, uniqueid: str, parked_s: int, talked_s: int, now: Moment, only_once: bool = False
    ) -> None:
        """End the newest time that a call was parked; ``only_once``: unless it ended just then."""
        call = (uniqueid, self._server_ip)
        values = (now.text, parked_s, talked_s, *call)
        if only_once:
            self._write_each((sql.CLOSE_PARK.format(unless=sql.UNLESS_UNPARKED), (*values, now.text, *call)))
        else:
            self._write_each((sql.CLOSE_PARK.format(unless=""), values))

    def set_carrier_cause(self, code: str, lead_id: int, uniqueid: str, cause: str, reason: str) -> Statement:
        """Make the statement that tells the dialer's row how the carrier ended the call."""
        return sql.SET_CARRIER_CAUSE, (cause, reason, uniqueid, code, self._server_ip, lead_id)

    def insert_carrier(self, row: CarrierRow) -> Statement:
        """Make the statement that adds a carrier row; the first of a unique id stays."""
        return sql.INSERT_CARRIER, row

    def end_monitor(self, code: str, length_s: int, now: Moment) -> None:
        """End a manager's listening."""
        self._write_each((sql.END_MONITOR, (length_s, now.text, code)))

    def end_three_way(self, code: str, only_once: bool = False) -> None:
        """End an outside agent's call, and write it into its history.

        Args:
            code: The call's.
            only_once: Not into the history if that has it.
        """
        # The status last: by it a later request knows that nothing is left to do.
        end = (sql.END_THREE_WAY, (code,))
        # The text is appended, so who repeats this after a lost connection looks first.
        careful = ((sql.LOG_THREE_WAY + sql.UNLESS_HUNG_UP, (code,)), end)
        first_time = ((sql.LOG_THREE_WAY, (code,)), end)
        self._write_each(*(careful if only_once else first_time), repeated=careful)

    def fail_dial(
        self, code: str, lead_id: int, stem: str, status: str, auto_call_status: str, write_lead: bool
    ) -> bool:
        """Write the status of a dial that failed.

        Args:
            code: Whose row of calls that are alive gets ``auto_call_status``.
            lead_id: Whose lead and log rows get ``status``.
            stem: How the unique id of the log rows begins.
            status: As it says.
            auto_call_status: What the column does not know is stored as empty.
            write_lead: Whether the lead is written.

        Returns:
            Whether there was a log row.
        """
        statements: list[Statement] = [(sql.SET_LEAD_STATUS, (status, lead_id))] if write_lead else []
        if code:
            statements.append((sql.SET_AUTO_CALL_STATUS, (auto_call_status, code)))
        statements.append((sql.SET_LOG_STATUS, (status, lead_id, sql.beginning(stem))))
        return self._write_each(*statements).answers[-1].matched > 0

    def new_log(self, log: NewLog) -> tuple[Statement, Statement]:
        """Make the statements that insert the rows of a call that nobody took."""
        return sql.insert_logs(log)

    def end_call(
        self, statements: Sequence[Statement], drop: DropRow | None, only_once: bool = False
    ) -> None:
        """Write what becomes of a call that was answered, in one round trip.

        Args:
            statements: Made by :meth:`lead_status`, :meth:`log_ending` and the like.
            drop: The drop row; None for none.
            only_once: No drop row if the same call has one since less than a minute.
        """
        if drop is None:
            if statements:
                self._write_each(*statements)
            return
        careful = (*statements, sql.insert_drop(drop, only_once=True))
        self._write_each(*(careful if only_once else (*statements, sql.insert_drop(drop))), repeated=careful)

    def take_auto_call(self, auto_call_id: int, code: str) -> Taken:
        """Delete a call from those that are alive, and stop it ringing at agents.

        Returns:
            Whether this request has done it: who has owns what follows.
        """
        # The row last: its table knows no rollback, so a failure behind it would hide that it was there.
        statements: list[Statement] = [(sql.CLEAR_RINGING, (code,))] if code else []
        done = self._write_each(*statements, (sql.DELETE_AUTO_CALL, (auto_call_id,)))
        deleted = done.answers[-1]
        if deleted is _NOTHING or done.in_doubt:
            return Taken.PERHAPS
        return Taken.YES if deleted.matched else Taken.NO

    def stop_ringing(self, code: str) -> None:
        """Let no agent's screen ring for a call any more."""
        if code:
            self._write_each((sql.CLEAR_RINGING, (code,)))

    def delete_auto_calls(self, code: str) -> None:
        """Delete all rows of a code from the calls that are alive."""
        self._write_each((sql.DELETE_AUTO_CALLS, (code,)))

    def lead_status(self, lead_id: int, status: str) -> Statement:
        """Make the statement that sets a lead's status."""
        return sql.SET_LEAD_STATUS, (status, lead_id)

    def lead_reset(self, lead_id: int) -> Statement:
        """Make the statement that lets a lead be dialled again."""
        return sql.RESET_LEAD, (lead_id,)

    def log_ending(
        self,
        lead_id: int,
        stem: str,
        status: str | None,
        term_reason: str | None,
        end_epoch: int,
        length_s: int,
    ) -> Statement:
        """Make the statement that ends the outbound rows of a call; None leaves a column as it is."""
        columns = {
            "status": status,
            "term_reason": term_reason,
            "end_epoch": end_epoch,
            "length_in_sec": length_s,
        }
        return sql.update(
            "vicidial_log", columns, "lead_id = %s AND uniqueid LIKE %s", lead_id, sql.beginning(stem)
        )

    def closer_ending(
        self,
        closecallid: int,
        status: str | None,
        term_reason: str | None,
        queue_s: int | None,
        user: str | None,
        end_epoch: int,
        length_s: int,
    ) -> Statement:
        """Make the statement that ends an inbound row; None leaves a column as it is."""
        columns = {
            "status": status,
            "term_reason": term_reason,
            "queue_seconds": queue_s,
            "user": user,
            "end_epoch": end_epoch,
            "length_in_sec": length_s,
        }
        return sql.update("vicidial_closer_log", columns, "closecallid = %s", closecallid)

    def _close_calls(self, closings: Sequence[Closing]) -> list[bool]:
        """Write ends; tells of each whether something of it was lost."""
        statements = [statement for closing in closings for statement in closing.before]
        ending = sorted((closing for closing in closings if closing.uniqueid), key=_by_uniqueid)
        statements += [
            sql.close_calls([(each.uniqueid, each.channel) for each in ending if each.now == now], now)
            for now in {closing.now for closing in ending}
        ]
        popups = tuple({uid for closing in closings for uid in closing.popups})
        if popups:
            statements.append((sql.DELETE_POPUPS, (self._server_ip, popups)))
        if len(closings) > 1:
            self._write(*statements)
            return [False] * len(closings)
        return [any(answer is _NOTHING for answer in self._write_each(*statements).answers)]

    # --- what is dialled next

    def lead(self, lead_id: int) -> Lead | None:
        """Give a lead."""
        rows = self._rows(sql.LEAD, lead_id)
        return read_lead(rows[0]) if rows else None

    def lead_words(self, lead_id: int) -> LeadWords:
        """Give what of a lead may stand in a URL; all empty if there is no such lead."""
        rows = self._rows(sql.LEAD_WORDS, lead_id)
        return LeadWords(*map(text, rows[0])) if rows else LeadWords(*[""] * 9)

    def alt_phones(self, lead_id: int) -> tuple[int, dict[int, AltPhone]]:
        """Give how many further numbers a lead has, and these by their place; of equal places the oldest."""
        rows = self._rows(sql.ALT_PHONES, lead_id)
        by_place = {number(row[0]): AltPhone(*map(text, row[1:])) for row in reversed(rows)}
        return len(rows), by_place

    def count_dnc(
        self, system_numbers: Sequence[str], campaign_numbers: Sequence[str], campaign_id: str
    ) -> tuple[int, int]:
        """Count entries in the lists of numbers that must not be called: the system's and a campaign's.

        Args:
            system_numbers: What to look for in the system's list; none to look for nothing.
            campaign_numbers: What to look for in the campaign's list; likewise.
            campaign_id: Whose list.
        """
        system: list[Statement] = [(sql.COUNT_DNC, (tuple(system_numbers),))] if system_numbers else []
        campaign: list[Statement] = []
        if campaign_numbers:
            campaign.append((sql.COUNT_CAMPAIGN_DNC, (tuple(campaign_numbers), campaign_id)))
        if not system and not campaign:
            return 0, 0
        counts = [int(rows[0][0]) for rows in self._ask(*system, *campaign)]
        return (counts[0] if system else 0), (counts[-1] if campaign else 0)

    def calls_of_day(self, number: str, phone_code: str, list_ids: Sequence[int] | None = None) -> int:
        """Count the calls to a number within a day; only of some lists if they are given."""
        return self._count_day(sql.COUNT_DAY_OF_NUMBER, (number, phone_code), list_ids)

    def calls_of_day_to_lead(self, lead_id: int, list_ids: Sequence[int] | None = None) -> int:
        """Count the calls to a lead within a day; only of some lists if they are given."""
        return self._count_day(sql.COUNT_DAY_OF_LEAD, (lead_id,), list_ids)

    def insert_hopper(self, row: HopperRow, only_once: bool = False) -> None:
        """Have a number dialled next.

        Args:
            row: The number.
            only_once: Not if the hopper holds the lead with this number already.
        """
        values = (
            row.lead_id,
            row.campaign_id,
            row.status,
            row.list_id,
            row.gmt_offset_now,
            row.state,
            row.alt_dial,
            row.priority,
        )
        careful = (sql.INSERT_HOPPER + sql.UNLESS_IN_HOPPER, (*values, row.lead_id, row.alt_dial))
        self._write_each(careful if only_once else (sql.INSERT_HOPPER, values), repeated=(careful,))

    def _count_day(self, query: str, values: tuple[object, ...], list_ids: Sequence[int] | None) -> int:
        if list_ids is not None:
            query, values = query + sql.IN_LISTS, (*values, tuple(list_ids))
        return int(self._rows(query, *values)[0][0])

    # --- call quota

    def newest_dial(self, lead_id: int, since: str, until: str = NEVER) -> str:
        """Give when a lead was dialled last, as the database writes it; empty if not within these times."""
        return text(first(self._rows(sql.DIAL_DATE, lead_id, since, until, f"%{lead_id}")))

    def quota_row(self, lead_id: int, list_id: int) -> QuotaRow | None:
        """Give the dates of a lead's row of quota counts."""
        rows = self._rows(sql.QUOTA_ROW, lead_id, list_id)
        # The driver gives a date of zeros as text.
        dates = [value if isinstance(value, datetime) else None for value in rows[0]] if rows else []
        return QuotaRow(*dates) if rows else None

    def insert_quota(self, call: QuotaCall) -> None:
        """Count a lead's first call; the day must be known."""
        query = sql.INSERT_QUOTA.format(session=call.session, day=call.day)
        dates = (call.dialled_at, call.dialled_at)
        values = (call.lead_id, call.list_id, *dates, call.status, call.called_count, call.rank)
        self._write_quota(call, (query, values))

    def count_quota(self, call: QuotaCall) -> None:
        """Count another call of a lead, unless it is counted already."""
        columns = [f"session_{call.session}_calls", f"session_{call.session}_today_calls"]
        columns += [f"day_{call.day}_calls"] if call.day else []
        more = "".join(sql.ONE_MORE.format(column=column) for column in columns)
        query = f"{sql.SET_QUOTA}{more}, last_call_date = %s{sql.QUOTA_OF}{sql.UNLESS_COUNTED}"
        dated = (call.dialled_at, call.lead_id, call.list_id, call.dialled_at)
        self._write_quota(call, (query, (call.status, call.called_count, call.rank, *dated)))

    def set_quota_status(self, call: QuotaCall) -> None:
        """Tell how a call ended that is counted already."""
        values = (call.status, call.called_count, call.rank, call.lead_id, call.list_id)
        self._write_quota(call, (sql.SET_QUOTA + sql.QUOTA_OF, values))

    def _write_quota(self, call: QuotaCall, counted: Statement) -> None:
        if call.writes_rank:
            self._write_each(counted, (sql.SET_LEAD_RANK, (call.rank, call.lead_id)))
        else:
            self._write_each(counted)

    # --- KHOMP and QueueMetrics

    def insert_khomp(
        self,
        code: str,
        header: str,
        khomp_id: str,
        id_format: str,
        container_id: str,
        only_once: bool = False,
    ) -> None:
        """Note that a call is announced to KHOMP's service; the database adds the time.

        Args:
            code: Of the call.
            header: By which it is announced.
            khomp_id: As which it is announced.
            id_format: Of ``khomp_id``; what the column does not know is stored as empty.
            container_id: Where the settings are.
            only_once: Not if it was announced since less than a minute.
        """
        values = (code, self._server_ip, header, khomp_id, id_format, container_id)
        careful = (sql.INSERT_KHOMP + sql.UNLESS_KHOMP_KNOWS, (*values, khomp_id, self._server_ip))
        self._write_each(careful if only_once else (sql.INSERT_KHOMP, values), repeated=(careful,))

    def end_khomp(self, khomp_id: str, columns: dict[str, Any]) -> None:
        """Write what KHOMP's service says about a call; a column without a value stays as it is."""
        self._write_each(sql.update("vicidial_khomp_log", columns, "khomp_id = %s", khomp_id))

    def replace_container(self, container_id: str, old: str, new: str) -> None:
        """Give a settings container another text, unless somebody else has changed it meanwhile."""
        self._write_each((sql.REPLACE_CONTAINER, (new, container_id, old)))
        self._settings.forget((sql.CONTAINER, container_id))

    def queue_entry(self, uniqueid: str, lead_id: int, in_group: str, since: str) -> tuple[str, str] | None:
        """Give at which place a call came into a queue and when; None if it did not since then."""
        rows = self._rows(sql.QUEUE_ENTRY, uniqueid, lead_id, in_group, since)
        return (text(rows[0][0]), text(rows[0][1])) if rows else None

    def count_waiting(self, in_group: str, before: str) -> int:
        """Count the calls that wait for an agent and were placed before that time."""
        return int(self._rows(sql.COUNT_WAITING, in_group, before)[0][0])

    # --- how

    def _rows(self, query: str, *parameters: object) -> Found:
        return self._run([(query, parameters)]).answers[0].rows

    def _ask(self, *questions: Statement) -> list[Found]:
        return [answer.rows for answer in self._run(questions).answers]

    def _write(self, *statements: Statement, repeated: Sequence[Statement] | None = None) -> Done:
        return self._executor.run(statements, repeated, waits=True)

    def _write_each(self, *statements: Statement, repeated: Sequence[Statement] | None = None) -> Done:
        """Write; what fails for good is told and keeps nothing else from being written."""
        try:
            return self._run(statements, repeated)
        except err.Error as error:
            if len(statements) == 1:
                self._log.error("a row was not written: %s: %s", error, statements[0][0])
                _note_loss(str(error))
                return Done([_NOTHING], in_doubt=False)
        # The careful form: the packet may have been in doubt before it failed.
        done = [self._write_each(statement) for statement in repeated or statements]
        return Done([each.answers[0] for each in done], any(each.in_doubt for each in done))

    def _run(self, statements: Sequence[Statement], repeated: Sequence[Statement] | None = None) -> Done:
        """Carry out statements of one call, whatever its texts are."""
        try:
            return self._executor.run(statements, repeated, waits=True)
        except err.Error as error:
            if error.args[0] not in _MIXED_TEXTS:
                raise
        # An older VICIdial's tables are in Latin-1, and the server compares no text of another script with
        # them. As question marks, which is how such a column would store it, the text is nobody's.
        return self._executor.run(
            [_in_ascii(statement) for statement in statements],
            None if repeated is None else [_in_ascii(statement) for statement in repeated],
            waits=True,
        )


#: What the server says to texts that it cannot compare with a column.
_MIXED_TEXTS: Final = frozenset(
    {ER.CANT_AGGREGATE_2COLLATIONS, ER.CANT_AGGREGATE_3COLLATIONS, ER.CANT_AGGREGATE_NCOLLATIONS}
)

_NOTHING: Final = Answer((), 0)


def _note_loss(what: str) -> None:
    """Remember that something was not written, for the call in whose greenlet this is."""
    lost = lost_rows.get()
    if lost is not None:
        lost.append(what)


def minutes(length_s: int) -> float:
    """Give minutes to two decimals, as VICIdial stores them."""
    return round(length_s / 60, 2)


def _by_uniqueid(row: NewCall | Closing) -> str:
    return row.uniqueid


def _in_ascii(statement: Statement) -> Statement:
    """Make question marks of all that is not ASCII."""
    query, parameters = statement
    return query, [_ascii(parameter) for parameter in parameters]


def _ascii(value: object) -> object:
    if isinstance(value, str):
        return value.encode("ascii", "replace").decode("ascii")
    return tuple(map(_ascii, value)) if isinstance(value, tuple) else value
