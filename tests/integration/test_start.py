"""What a service does with mail it finds as it starts."""

from __future__ import annotations

from relayd.config.schema import Delivery, Settings
from relayd.service import Service
from relayd.spool.shard import JournalStore
from tests.fakes.mail import accepted, name


async def test_what_an_operator_releases_during_the_start_is_scheduled_once(tmp_path, monkeypatch):
    store = JournalStore(tmp_path / "spool" / "shard-00", 0)
    await store.open()
    await store.commit([accepted(1), accepted(2)])
    await store.close()
    service = Service(
        Settings(hostname="relay.example", spool={"path": tmp_path / "spool"}, workers=1, delivery=Delivery(), listeners=[])
    )
    add = service.dispatcher.add

    def added(message):
        add(message)
        if message.envelope.id == name(1):
            other = service.queue.get(name(2))
            assert other is not None
            service.dispatcher.reschedule(other)

    monkeypatch.setattr(service.dispatcher, "add", added)
    monkeypatch.setattr(service.dispatcher, "start", lambda: None)
    service.bind()
    await service.start()
    assert service.scheduler.recall(name(1)) is not None
    scheduled = service.scheduler.recall(name(2))
    assert scheduled is not None
    assert len(scheduled) == 1
    await service.stop("test")
