"""The live page in Chromium: it shows what the API says, and its actions act."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from router.pool.worker import Origin
from tests.browser.devtools import BROWSER, Tab, browser
from tests.integration.api.pools import BOTH, IMAGES, Member
from tests.integration.deployment import Deployment, deployed, until
from tests.patience import fail_after, stretched

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is missing")

Test = Callable[..., Awaitable[None]]
KEY = "the-admin-key"


def run(test: Test, *kinds: dict[str, Any], **settings: Any) -> None:
    """Run `test(tab, deployment, *members)` with the page open."""

    async def main() -> None:
        with fail_after(600 if "PICTURE" in os.environ else 120):
            async with deployed(**settings) as pool, browser() as tab:
                headers = {"x-api-key": settings.get("admin_api_key", "")}
                pool.http.headers.update(headers)
                members = []
                for kind in kinds:
                    sim = await pool.simulated(**kind)
                    members.append(Member(sim, await pool.register(sim.url)))
                await tab.look(width=1280, height=900)
                await tab.open(f"{pool.address}/dashboard")
                await tab.until("document.getElementById('live').className === 'on'")
                await test(tab, pool, *members)

    trio.run(main, strict_exception_groups=True)


def state_of(worker: str) -> str:
    """An expression: the state that the row of this worker shows."""
    rows = "[...document.querySelectorAll('#rows tr')]"
    mine = f"{rows}.find((row) => row.textContent.includes({json.dumps(worker)}))"
    return f"{mine}.querySelector('.state b').textContent"


def test_it_shows_what_the_api_says() -> None:
    async def test(tab: Tab, pool: Deployment, a: Member, b: Member) -> None:
        assert (await pool.image(model="image/a")).status_code == 200
        await tab.until("pool.workers.size === 2")
        # Its own state is that of the API, field by field, but for what goes on without an event.
        said = (await pool.http.get("/workers")).json()["workers"]
        shown: list[Any] = []

        async def shows_the_same() -> bool:
            shown[:] = await tab.run("[...pool.workers.values()]")
            for one in (*said, *shown):
                one["outstanding_seconds"] = one["work"] = None
            return shown == said

        with trio.move_on_after(stretched(10)):
            while not await shows_the_same():
                await trio.sleep(0.1)
        assert shown == said
        assert await tab.texts("#rows .name button") == [worker["name"] for worker in said]
        assert await tab.texts("#verdict") == ["All 2 workers serve"]
        assert await tab.texts("#rows .serves") == ["image/a", "both/c"]
        assert (await tab.texts("#queue-card dd"))[0] == "0"
        await tab.until("document.querySelector('#charts p').textContent.includes('per minute')")
        body = {"model_path": "image/step-2"}
        query = {"model": "image/a"}
        await pool.http.post("/update_weights_from_disk", params=query, json=body)
        await tab.until(
            "[...document.querySelectorAll('.versions b')].some((b) => b.textContent === 'v1')"
        )
        a.sim.kill()
        await tab.until(f"{state_of(a.known.name)}.startsWith('unhealthy')")
        await tab.until("document.getElementById('verdict').textContent.includes('1 failed')")
        assert tab.errors == []

    run(test, IMAGES, BOTH)


async def act(tab: Tab, worker: str, action: str) -> None:
    """Click an action of a worker, confirm it, and close the dialog once it is done."""
    await tab.click("#rows .name button", worker)
    await tab.click("#dialog .buttons button", action)
    await tab.click("#dialog .buttons button", action)
    await tab.until("document.querySelector('#dialog .answer').textContent === 'Done.'")
    await tab.click("#dialog .buttons button", "Close")


def test_actions_act() -> None:
    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        worker = a.known
        await tab.until("pool.workers.size === 1")
        # Nothing happens before it is confirmed, nor without the key.
        await tab.click("#rows .name button", worker.name)
        await tab.click("#dialog .buttons button", "Quarantine")
        assert worker.admin == "enabled"
        await tab.click("#dialog .buttons button", "Quarantine")
        await tab.until(
            "document.querySelector('#dialog input')"
            " && !document.querySelector('#dialog label').hidden"
        )
        assert worker.admin == "enabled"
        for key, words in (("wrong", "wrong"), (KEY, "Done.")):
            await tab.run(f"document.querySelector('#dialog input').value = '{key}'")
            await tab.click("#dialog .buttons button", "Quarantine")
            await tab.until(
                f"document.querySelector('#dialog .answer').textContent.includes('{words}')"
            )
        assert worker.admin == "quarantined"
        await tab.click("#dialog .buttons button", "Close")
        await tab.until(f"{state_of(worker.name)} === 'quarantined'")
        assert not await tab.run(
            "document.cookie + localStorage.length + sessionStorage.length > '00'"
        )
        # From now on the page knows the key.
        for action, done, shown in (
            ("Recover", lambda: worker.admin == "enabled", "free"),
            ("Drain", lambda: worker.admin == "draining", "draining"),
            ("End the drain", lambda: worker.admin == "enabled", "free"),
            ("Sleep", lambda: worker.memory == "asleep", "asleep"),
            ("Wake", lambda: worker.memory == "awake", "free"),
        ):
            await act(tab, worker.name, action)
            await until(done)
            await tab.until(f"{state_of(worker.name)} === '{shown}'")
        await tab.click("#sync")
        await tab.click("#dialog .buttons button", "Sync")
        await tab.until("document.querySelector('#dialog .answer').textContent === 'Done.'")
        await tab.click("#dialog .buttons button", "Close")
        await act(tab, worker.name, "Remove")
        await tab.until("pool.workers.size === 0 && !document.querySelector('#rows tr')")
        assert worker.removed
        assert await tab.texts("#verdict") == ["No workers are registered"]
        refused = [error for error in tab.errors if "401" not in error and "403" not in error]
        assert refused == []

    run(test, IMAGES, admin_api_key=KEY)


def test_launched_workers_are_restarted_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        launch = {"launcher": "l", "index": 0, "phase": "ready", "detail": None}
        launch |= {"pid": 7, "restarts": 3, "log": None, "gpus": ["5"]}
        fleet = type(pool.running.fleet)

        async def scale(_: Any, workers: int, launcher: str | None = None) -> dict[str, Any]:
            done.append((workers, launcher))
            return {}

        monkeypatch.setattr(fleet, "describe", lambda *_: launch)
        monkeypatch.setattr(fleet, "restart", lambda _, worker: done.append(worker))
        monkeypatch.setattr(fleet, "scale", scale)
        await tab.run("follow()")
        await tab.until(
            "[...document.querySelectorAll('#rows .gpu')].some((cell) => cell.textContent === '5')"
        )
        assert await tab.texts("#rows .restarts") == ["3"]
        await act(tab, a.known.name, "Restart")
        await tab.click("#scale")
        await tab.run("document.querySelector('#dialog input').value = 4")
        await tab.click("#dialog .buttons button", "Scale")
        await tab.until("document.querySelector('#dialog .answer').textContent === 'Done.'")
        assert done == [a.known, (4, "l")]
        assert tab.errors == []

    run(test, IMAGES)


def test_words_of_workers_stay_words() -> None:
    evil = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script>"

    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        await tab.until("pool.workers.size === 1")
        assert await tab.texts("#rows .serves") == [evil]
        await tab.click("#rows .name button", a.known.name)
        assert evil in await tab.texts("#dialog dd")
        assert await tab.run("document.querySelectorAll('img').length") == 0
        assert await tab.run("document.scripts.length") == 1
        assert await tab.run("document.title") == "1/1 · Diffusion router"
        assert tab.errors == []

    run(test, {"model_path": evil, "task_types": ("T2I",)})


def test_the_playground_makes_pictures_and_videos() -> None:
    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        await tab.until("document.querySelector('[name=model]').value === 'both/c'")
        await tab.run("document.querySelector('[name=prompt]').value = \"it's a <kite>\"")
        await tab.run("document.querySelector('[name=other]').value = 8")
        await tab.run("form.dispatchEvent(new Event('input'))")
        await tab.click("#play button", "Generate")
        await tab.until(
            "[...document.querySelectorAll('#results img')]"
            ".filter((image) => image.naturalWidth === 512).length === 2"
        )
        captions = await tab.texts("#results figcaption")
        assert [text.partition(" · ")[0] for text in captions] == ["seed 7", "seed 8"]
        assert a.known.name in captions[0]
        curl = (await tab.texts("#code"))[0]
        assert "it'\\''s a <kite>" in curl
        await tab.click("#as-python")
        code = (await tab.texts("#code"))[0]
        compile(code, "shown", "exec")
        await tab.click(".chip span", "Video")
        code = (await tab.texts("#code"))[0]
        compile(code, "shown", "exec")
        assert "/v1/videos" in code
        await tab.run("document.querySelector('[name=other]').value = ''")
        await tab.click("#play button", "Generate")
        await tab.until("document.querySelector('#results video')?.videoWidth > 0")
        assert tab.errors == []

    run(test, BOTH)


def test_newest_images_are_shown_behind_the_key() -> None:
    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        await tab.until("document.querySelector('#previews-card .empty') !== null")
        assert (await pool.image(response_format="b64_json", seed=3)).status_code == 200
        await tab.until("document.querySelector('#ask-previews') !== null")
        assert await tab.run("document.querySelectorAll('img').length") == 0
        await tab.click("#ask-previews")
        await tab.click("#dialog .buttons button", "Show")
        await tab.until("!document.querySelector('#dialog label').hidden")
        await tab.run(f"document.querySelector('#dialog input').value = '{KEY}'")
        await tab.click("#dialog .buttons button", "Show")
        await tab.until("document.querySelector('.thumb img')?.naturalWidth > 0")
        assert (await pool.image(response_format="b64_json", seed=4)).status_code == 200
        await tab.until("document.querySelectorAll('.thumb img').length === 2")
        assert (await tab.texts(".thumbs figcaption .cut"))[0] == a.known.name
        await tab.click(".thumb")
        await tab.until("document.querySelector('#dialog img.large')?.naturalWidth > 0")
        assert [error for error in tab.errors if "401" not in error] == []

    run(test, IMAGES, admin_api_key=KEY, dashboard_previews=True)


def test_the_playground_compares_two_weight_versions() -> None:
    async def test(tab: Tab, pool: Deployment, a: Member) -> None:
        other = await pool.simulated(**BOTH)
        body = {"url": other.url, "pool": "teacher"}
        assert (await pool.http.post("/workers", json=body)).status_code == 200
        change = {"model_path": "both/step-1"}
        changed = await pool.http.post(
            "/update_weights_from_disk", json=change, params={"pool": "default"}
        )
        assert changed.status_code == 200, changed.text
        await tab.until("form.elements.weights.options.length === 3")
        offered = "[...form.elements.against.options].map((each) => each.textContent)"
        assert await tab.run(offered) == ["none", "v1 in default", "v0 in teacher"]
        for name, place in (("weights", 1), ("against", 2)):
            await tab.run(f"form.elements.{name}.selectedIndex = {place}")
        await tab.run("form.dispatchEvent(new Event('input'))")
        code = (await tab.texts("#code"))[0]
        assert "-H 'X-Exact-Weight-Version: 1' -H 'X-Pool: default'" in code
        await tab.click("#as-python")
        code = (await tab.texts("#code"))[0]
        compile(code, "shown", "exec")
        assert '"X-Exact-Weight-Version":"1"' in code
        await tab.click("#play button", "Generate")
        await tab.until(
            "[...document.querySelectorAll('#results img')]"
            ".filter((image) => image.naturalWidth === 512).length === 2"
        )
        captions = await tab.texts("#results figcaption")
        assert [text.rpartition(" · ")[2] for text in captions] == ["weights v1", "weights v0"]
        # Two seeds of two versions are four images.
        await tab.run("form.elements.other.value = 8")
        await tab.click("#play button", "Generate")
        await tab.until("document.querySelectorAll('#results figure').length === 4")
        await tab.until("document.querySelectorAll('#results img').length === 4")
        assert tab.errors == []

    run(test, BOTH)


def test_jobs_in_line_and_a_rolling_change() -> None:
    async def test(tab: Tab, pool: Deployment, *members: Member) -> None:
        changed = await pool.http.post(
            "/update_weights_from_disk", json={"model_path": "both/1"}, params={"rolling": "1"}
        )
        assert changed.status_code == 200
        await tab.until("document.querySelectorAll('.lane .refit').length === 1")
        title = "document.querySelector('.lane .refit title').textContent"
        assert (await tab.run(title)).startswith("v1 both/1 (disk): 2 workers, ")
        assert await tab.run("document.querySelectorAll('.lane .refit').length") == 1
        for member in members:
            member.sim.faults.add("slow", factor=1e6)
        for _ in range(6):
            assert (await pool.http.post("/v1/videos", json={"prompt": "x"})).status_code == 200
        await tab.until("document.querySelectorAll('#jobs-list .job').length === 6")
        told = await tab.texts("#jobs-list .job > :last-child")
        assert sorted(text for text in told if "line" in text) == [
            *("1st in line", "1st in line", "2nd in line", "2nd in line")
        ]
        assert await tab.texts("#jobs-count") == ["6"]
        assert await tab.texts("#rows .slots small") == [" 1/1 + 2", " 1/1 + 2"]
        assert await tab.texts("#workers-count") == ["2, 2 of 2 slots in use"]

    run(test, BOTH, BOTH)


async def tabbed(tab: Tab) -> list[dict[str, Any]]:
    """What the tabulator reaches, once around: each element and how it shows that it has focus."""
    reached: list[dict[str, Any]] = []
    await tab.run("document.body.focus(), getSelection().removeAllRanges()")
    for _ in range(200):
        for kind in ("rawKeyDown", "keyUp"):
            await tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        place = await tab.run(
            """(() => {
              const element = document.activeElement, style = getComputedStyle(element);
              if (element === document.body) return null;
              const chip = element.closest('.chip')?.querySelector('span');
              const ring = chip ? getComputedStyle(chip) : style;
              const all = [...document.querySelectorAll('*')];
              const shows = ring.outlineStyle !== 'none' && parseFloat(ring.outlineWidth) >= 2;
              return { place: all.indexOf(element), shows, what: element.outerHTML.slice(0, 90) };
            })()"""
        )
        if place is None or (reached and place["place"] == reached[0]["place"]):
            break
        reached.append(place)
    return reached


def test_keyboard_and_screen_reader_miss_nothing() -> None:
    audit = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")

    async def test(tab: Tab, pool: Deployment, a: Member, b: Member, c: Member) -> None:
        assert (await pool.image(response_format="b64_json")).status_code == 200
        c.sim.kill()
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        await tab.until("document.querySelector('#verdict').textContent.includes('failed')")
        await tab.until("document.querySelectorAll('.thumb img').length === 1")
        await tab.click("#play button", "Generate")
        await tab.until("document.querySelectorAll('#results img').length === 1")
        for dark in (False, True):
            for width in (1280, 390):
                await tab.look(width=width, height=900, dark=dark)
                assert await tab.run(audit) == []
            await tab.click("#rows .name button", a.known.name)
            assert await tab.run(audit) == []
            await tab.click("#dialog .buttons button", "Remove")
            assert await tab.run(audit) == []
            assert await tab.run("document.activeElement.textContent") == "Cancel"
            await tab.click("#dialog .buttons button", "Cancel")
        # The audit does find what is wrong.
        await tab.run("$('verdict').style.color = '#777'; $('sync').textContent = ''; 0")
        assert [said.split()[0] for said in await tab.run(audit)] == ["no", "contrast"]
        await tab.run("$('verdict').style.color = ''; $('sync').textContent = 'Sync weights'; 0")
        await tab.look(width=1280, height=900)
        reached = await tabbed(tab)
        assert [each["what"] for each in reached if not each["shows"]] == []
        places = [each["place"] for each in reached]
        assert places == sorted(places)
        reachable = await tab.run(
            "[...document.querySelectorAll('a, button, input:not([type=radio]), select, textarea')]"
            ".filter((each) => each.getClientRects().length && !each.disabled).length"
        )
        assert len(reached) >= reachable

    run(test, BOTH, IMAGES, IMAGES, dashboard_previews=True)


def test_two_hundred_workers_stay_smooth() -> None:
    async def test(tab: Tab, pool: Deployment) -> None:
        for number in range(200):
            url = f"http://127.{number // 100 + 1}.{number % 100}.1:9"
            pool.running.parts.registry.add(url, Origin.REGISTERED)
        await tab.until("document.querySelectorAll('#rows tr').length === 200")
        # A change of one worker touches its row alone.
        script = """new Promise((resolve) => {
          const touched = new Set();
          const watcher = new MutationObserver((all) => all.forEach((one) => {
            const node = one.target.nodeType === 1 ? one.target : one.target.parentElement;
            touched.add(node?.closest('tr'));
          }));
          const [id, worker] = [...pool.workers][100];
          source.close();
          setTimeout(() => {
            const all = { subtree: true, childList: true, characterData: true, attributes: true };
            watcher.observe(document.getElementById('rows'), all);
            onChange({ now: now(), workers: { [id]: { health_reason: 'just so' } } });
            const began = performance.now();
            const done = () => resolve([touched.size, performance.now() - began]);
            requestAnimationFrame(() => setTimeout(done, 0));
          }, 500);
        })"""
        rows, one = await tab.run(script)
        assert rows == 1
        # All of them at once, twenty times over.
        script = """(() => {
          const began = performance.now();
          for (let round = 0; round < 20; round += 1) {
            const ids = new Set(pool.workers.keys()), health_reason = `${round}`;
            for (const id of ids) pool.workers.set(id, { ...pool.workers.get(id), health_reason });
            for (const [names, paint] of painters) if (names.includes('workers')) paint(ids);
            document.body.offsetHeight;
          }
          return (performance.now() - began) / 20;
        })()"""
        each = await tab.run(script)
        print(f"one change {one:.0f} ms, all 200 workers {each:.0f} ms")
        assert each < 1000
        assert tab.errors == []

    run(test, health_check_interval=60.0)


def test_it_fits_a_phone_and_a_picture_is_taken(tmp_path: Path) -> None:
    place = Path(os.environ.get("PICTURE") or tmp_path / "page.png").absolute()

    async def test(tab: Tab, pool: Deployment, *members: Member) -> None:
        async with trio.open_nursery() as nursery:

            async def generate(client: str) -> None:
                headers, number = {"x-client-id": client}, 0
                while True:
                    number += 1
                    body = {"prompt": "a red kite", "size": "512x512", "seed": number}
                    body |= {"num_inference_steps": 8 + 9 * (number % 4)}
                    path = "/v1/images/generations"
                    await pool.http.post(path, json=body, headers=headers)

            async def submit() -> None:
                await pool.http.post("/v1/videos", json={"prompt": "x", "seconds": 2})

            for client in ("alice", "alice", "trainer", "trainer", "trainer", "bob"):
                nursery.start_soon(generate, client)
            nursery.start_soon(submit)
            body = {"model_path": "both/step-1"}
            await pool.http.post("/update_weights_from_disk", json=body)
            asleep, out = members[-1], members[-2]
            query = {"workers": asleep.id}
            await pool.http.post("/release_memory_occupation", params=query, json={})
            await pool.http.put(f"/workers/{out.id}", json={"is_dead": True})
            await tab.until("document.querySelector('#verdict').textContent.includes('asleep')")
            if "PICTURE" in os.environ:
                await trio.sleep(150)  # so that the charts have something to show
            await tab.look(width=1280, height=860)
            await tab.run("scrollTo(0, 0)")
            await trio.sleep(1)
            await tab.picture(place)
            for width in (320, 390, 768):
                await tab.look(width=width, height=800)
                assert await tab.run("document.documentElement.scrollWidth") <= width
            nursery.cancel_scope.cancel()
        assert place.stat().st_size < 300_000
        assert tab.errors == []

    kind = {**BOTH, "time_scale": 3.0} if "PICTURE" in os.environ else BOTH
    run(test, *[kind] * 6)
