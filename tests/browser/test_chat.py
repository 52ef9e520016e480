"""A chat in JupyterLab, with a model on two real ranks."""

from __future__ import annotations

import re

import pytest
from lab import Lab, picture, run_all
from painted import pale_texts
from playwright.sync_api import Locator, Page, expect

MODEL = """
%mlx_dist up -n 2 --seed 1
from mlxbench_kernel import LanguageModel
from mlxbench_kernel.models.small import make_small_model
lm = LanguageModel.load(make_small_model({name!r}), "tensor")
"""
CHAT = "view = lm.chat(max_tokens=3000)\nview"
LATER = "%%mlx_generate max_tokens=20 --out answer\nOnce upon a time"


def opened(lab: Lab, page: Page, name: str) -> Locator:
    lab.write(f"{name}.ipynb", MODEL.format(name=f"model-{name}"), CHAT, LATER)
    lab.notebook(page, f"{name}.ipynb")
    run_all(page)
    view = page.locator(".mlxbench-chat")
    view.get_by_text("nothing was said yet").wait_for(timeout=60_000)
    view.scroll_into_view_if_needed()
    return view


def button(view: Locator, label: str) -> Locator:
    return view.get_by_role("button", name=re.compile(rf"\b{label}$"))


def bubbles(view: Locator, role: str) -> Locator:
    return view.locator(f".mlxbench-chat-{role} .mlxbench-chat-bubble")


def test_a_chat_with_two_ranks(lab: Lab, page: Page) -> None:
    view = opened(lab, page, "chat")
    picture(page, "chat-empty")
    entry = view.locator(".mlxbench-chat-entry textarea")
    entry.fill("Tell me")
    entry.press("Shift+Enter")
    entry.press_sequentially("a story")
    expect(entry).to_have_value("Tell me\na story")
    expect(bubbles(view, "user")).to_have_count(0)
    entry.press("Enter")
    expect(bubbles(view, "user")).to_have_text("Tell me\na story")
    expect(entry).to_have_value("")
    # It comes in bits, while the kernel is idle.
    answer = bubbles(view, "assistant")
    expect(answer).to_have_text(re.compile(r".{20}", re.DOTALL))
    expect(page.get_by_text("MLX Bench | Idle")).to_be_visible()
    picture(page, "chat-answering")
    # A cell that uses the ranks waits for it, and says so; Stop works all the same.
    page.get_by_text("%%mlx_generate").click()
    page.keyboard.press("ControlOrMeta+Enter")
    page.get_by_text("waiting for what runs on the ranks in the background").wait_for()
    picture(page, "chat-cell-waits")
    button(view, "Stop").click()
    expect(page.get_by_text("MLX Bench | Idle")).to_be_visible()
    expect(page.locator(".jp-OutputArea").last).to_contain_text("20 tokens")
    line = view.locator(".mlxbench-chat-line")
    expect(line).to_contain_text("interrupted")
    expect(button(view, "Send")).to_be_enabled()
    expect(answer).to_have_count(1)
    stopped = answer.inner_text()
    # Settings of the next answer; what was said is in the cache.
    view.get_by_text("System prompt and sampling").click()
    view.get_by_label("max tokens").fill("20")
    view.get_by_label("max tokens").press("Tab")
    button(view, "Regenerate").click()
    expect(line).to_contain_text("stopped at max_tokens")
    expect(answer).not_to_have_text(stopped)
    assert stopped.startswith(answer.inner_text().rstrip("\ufffd")), "temperature 0"
    entry.fill("And then?")
    entry.press("Enter")
    expect(answer).to_have_count(2)
    expect(line).to_contain_text("in the cache")
    expect(line).to_contain_text("stopped at max_tokens")
    button(view, "Undo").click()
    expect(entry).to_have_value("And then?")
    expect(answer).to_have_count(1)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_can_be_read_in_both_themes(lab: Lab, page: Page, theme: str) -> None:
    dark = theme.endswith("Dark")
    view = opened(lab, page, "dark" if dark else "light")
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for label in ("Theme", theme):
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{label}$")).click()
    page.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark, timeout=15_000
    )
    view.get_by_text("System prompt and sampling").click()
    view.get_by_label("max tokens").fill("60")
    view.get_by_label("seed").fill("one")
    entry = view.locator(".mlxbench-chat-entry textarea")
    entry.fill("Hi")
    entry.press("Enter")
    expect(view.get_by_role("alert")).to_contain_text("seed: 'one' is no whole number")
    expect(entry).to_have_value("Hi")
    picture(page, f"chat-{'dark' if dark else 'light'}-error")
    assert not pale_texts(view)
    view.get_by_label("seed").fill("")
    view.get_by_label("seed").press("Tab")
    entry.press("Enter")
    expect(view.locator(".mlxbench-chat-line")).to_contain_text("stopped at max_tokens")
    picture(page, f"chat-{'dark' if dark else 'light'}")
    assert not pale_texts(view)
