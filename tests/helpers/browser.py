"""A headless Chromium, driven as a visitor would use it."""

import json
import os
import shutil
import time

import pytest

DRIVER, BROWSERS = "chromedriver", ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1300")
PATIENCE = 120  # seconds


def start():
    """Starts the browser; skips the test where there is none, and fails it where one is promised.

    `.ci/run` installs the browser. Where it can't, it sets NO_BROWSER to the reason.
    """
    from selenium import webdriver

    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which(DRIVER)
    if binary is None or driver is None:
        reason = os.environ.get("NO_BROWSER", "")
        if "CI" in os.environ and not reason:
            pytest.fail("there is no chromium with chromedriver, which .ci/run installs")
        pytest.skip(f"THE PAGE IS NOT TESTED: no chromium with chromedriver {reason}")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def until(condition):
    """The first value of a condition that is true; what it raises meanwhile does not count."""
    from selenium.common.exceptions import WebDriverException

    end, seen = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            if seen := condition():
                return seen
        except (WebDriverException, IndexError) as error:
            seen = error
        time.sleep(0.1)
    raise AssertionError(f"it did not happen in {PATIENCE} s; last: {seen!r}")


def texts(driver, selector):
    return [element.text for element in driver.find_elements("css selector", selector)]


def click(driver, words):
    """Clicks the last visible button with a text; tabs come before the buttons in them."""

    def clicked():
        buttons = driver.find_elements("tag name", "button")
        [button for button in buttons if button.text == words][-1].click()
        return True

    until(clicked)


def upload(driver, place, file):
    """Gives a file to the component `place`, and waits until it shows its name."""
    selector = f"{place} input[type=file]"
    until(lambda: driver.find_elements("css selector", selector))[0].send_keys(str(file))


def requested(driver):
    """The addresses that the browser asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    requests = (message["params"].get("request", {}) for message in messages)
    return {request["url"] for request in requests if "url" in request}
