"""Drives a real headless Chromium over a pipe with its own protocol: only the browser has to be installed."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
PATH = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = f'no browser: none of {", ".join(NAMES)} is on PATH (Debian: apt-get install chromium)'
FLAGS = (
  '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-dev-shm-usage',
  '--disable-background-networking', '--remote-debugging-pipe',
)  # fmt: skip
COMPLAINTS = 'Runtime.exceptionThrown', 'Log.entryAdded'
PATIENCE = 120


class Tab:
  """`complaints`: the page's errors, warnings and exceptions. `asked`: the URLs that it requested."""

  def __init__(self, to_browser, from_browser):
    self._to, self._from, self._rest = to_browser, from_browser, b''
    self._numbers, self._session = itertools.count(), None
    self.complaints, self.asked = [], []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **params) -> dict:
    number = next(self._numbers)
    message = {'id': number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    self._to.write(json.dumps(message).encode() + b'\0')
    self._to.flush()
    return self._until(lambda got: got.get('id') == number)['result']

  def _until(self, wanted) -> dict:
    end = time.monotonic() + PATIENCE
    while True:
      while b'\0' not in self._rest:
        ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
        more = os.read(self._from, 2**20) if ready else b''
        if not more:
          raise RuntimeError('the browser says nothing more')
        self._rest += more
      text, self._rest = self._rest.split(b'\0', 1)
      got = json.loads(text)
      self._note(got.get('method'), got.get('params', {}))
      if wanted(got):
        return got

  def _note(self, method, params):
    if method == 'Network.requestWillBeSent':
      self.asked.append(params['request']['url'])
    loud = params.get('type') in ('error', 'warning', 'assert')
    if method in COMPLAINTS or (method == 'Runtime.consoleAPICalled' and loud):
      self.complaints.append(params)

  def open(self, url: str, width: int, height: int = 900):
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
    self.call('Emulation.setDeviceMetricsOverride', **size)
    self.call('Page.navigate', url='about:blank')  # changing only the fragment loads nothing
    self.call('Page.navigate', url=url)
    while self.ask('document.readyState + location.protocol') != 'completefile:':
      time.sleep(0.02)

  def ask(self, script: str):
    """Evaluates a JavaScript expression in the page and returns its value."""
    got = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    if 'exceptionDetails' in got:
      raise RuntimeError(str(got['exceptionDetails']))
    return got['result'].get('value')

  def press(self, key: str, code: int):
    """Presses and releases a key; the page cannot tell it from a person's keystroke."""
    key = {'key': key, 'code': key, 'windowsVirtualKeyCode': code}
    for kind in ('keyDown', 'keyUp'):
      self.call('Input.dispatchKeyEvent', type=kind, **key)

  def picture(self, path):
    """Writes a PNG screenshot of the whole page to `path`."""
    got = self.call('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(got['data']))


@contextlib.contextmanager
def tab(folder):
  """A tab of a new browser that keeps its user data in `folder`."""
  (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
  command = [PATH, *FLAGS, f'--user-data-dir={folder}']
  piped = ['bash', '-c', f'exec "$0" "$@" 3<&{its_in} 4>&{its_out}', *command]
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
  process = subprocess.Popen(piped, pass_fds=(its_in, its_out), **quiet)
  os.close(its_in)
  os.close(its_out)
  try:
    with open(our_out, 'wb') as to_browser:
      yield Tab(to_browser, our_in)
  finally:
    process.terminate()
    process.wait(PATIENCE)
    os.close(our_in)
