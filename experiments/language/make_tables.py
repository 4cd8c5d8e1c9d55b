"""Write data/countries.csv and data/elements.csv from three packages, with what they get wrong put right.

  pip install countryinfo==1.0.1 babel==2.18.0 periodictable==2.1.0
  python -m experiments.language.make_tables

countryinfo (MIT): names, capitals, regions, demonyms. Babel (BSD-3-Clause; its data is Unicode's CLDR,
Unicode-3.0): languages. periodictable (public domain): names and symbols. A subject has a row for every
value that is right. Left out: fewer than a million inhabitants, dissolved states, and states or
territories whose status or capital is in dispute.
"""

import csv
from pathlib import Path

from absl import flags

from experiments.harness import cli

FLAGS = flags.FLAGS
DATA = Path(__file__).parents[1] / 'data'

LEFT_OUT = ('HK', 'PR', 'PS', 'TW', 'IL', 'CS')
SPELLED = {'GM': 'Gambia', 'MK': 'North Macedonia', 'SZ': 'Eswatini'}
SOUTH_AMERICA = ('AR', 'BO', 'BR', 'CL', 'CO', 'EC', 'GY', 'PY', 'PE', 'SR', 'UY', 'VE')
CONTINENTS = {
  'RU': ('Europe', 'Asia'), 'AU': ('Oceania', 'Australia'),
  **dict.fromkeys(('TR', 'KZ', 'AZ', 'GE', 'AM'), ('Asia', 'Europe')),
}  # fmt: skip
CAPITALS = {
  'BI': ('Gitega',), 'BJ': ('Porto-Novo', 'Cotonou'), 'BO': ('Sucre', 'La Paz'),
  'BR': ('Brasília', 'Brasilia'), 'CI': ('Yamoussoukro', 'Abidjan'), 'KZ': ('Astana',),
  'LK': ('Colombo', 'Sri Jayawardenepura Kotte'), 'SZ': ('Mbabane', 'Lobamba'),
  'UA': ('Kyiv', 'Kiev'), 'US': ('Washington',),
  'ZA': ('Pretoria', 'Cape Town', 'Bloemfontein'),
}  # fmt: skip
LANGUAGES = {
  'DZ': ('Arabic', 'Berber'), 'MA': ('Arabic', 'Berber'), 'TN': ('Arabic',), 'NG': ('English',),
  'KZ': ('Kazakh', 'Russian'), 'PY': ('Spanish', 'Guarani'), 'SD': ('Arabic', 'English'),
  'UA': ('Ukrainian',), 'CH': ('German', 'French', 'Italian'),
  'ZA': ('English', 'Afrikaans', 'Zulu', 'Xhosa', 'Sotho', 'Tswana'),
  'EC': ('Spanish',), 'MU': ('English', 'French'), 'UG': ('English', 'Swahili'),
}  # fmt: skip
LANGUAGE_NAMES = {
  'Bangla': 'Bengali', 'Nyanja': 'Chichewa', 'Rundi': 'Kirundi', 'Swati': 'Swazi',
  'Southern Sotho': 'Sotho', 'Norwegian Bokmål': 'Norwegian', 'Norwegian Nynorsk': 'Norwegian',
}  # fmt: skip
DEMONYMS = {
  'AR': 'Argentine', 'KG': 'Kyrgyz', 'TJ': 'Tajik', 'UZ': 'Uzbek', 'EC': 'Ecuadorian',
  'SI': 'Slovenian',
}  # fmt: skip
KINDS = {
  'noble gas': (2, 10, 18, 36, 54, 86), 'halogen': (9, 17, 35, 53, 85),
  'alkali metal': (3, 11, 19, 37, 55, 87), 'alkaline earth metal': (4, 12, 20, 38, 56, 88),
  'metalloid': (5, 14, 32, 33, 51, 52), 'nonmetal': (1, 6, 7, 8, 15, 16, 34),
  'lanthanide': tuple(range(57, 72)), 'actinide': tuple(range(89, 104)),
  'transition metal': (*range(21, 31), *range(39, 49), *range(72, 81)),
  'post-transition metal': (13, 31, 49, 50, 81, 82, 83, 84),
}  # fmt: skip
GASES, LIQUIDS = (1, 2, 7, 8, 9, 10, 17, 18, 36, 54, 86), (35, 80)


def countries():
  """Rows (subject, relation, attribute), sorted by subject."""
  import countryinfo

  rows = []
  for country in sorted(countryinfo.all_countries(), key=lambda c: c.info()['name']):
    about = country.info()
    code = about['ISO']['alpha2']
    if about['name'] == 'Burma' or not code or code in LEFT_OUT:
      continue
    if (about.get('population') or 0) < 10**6:
      continue
    region = 'South America' if code in SOUTH_AMERICA else about['region']
    region = 'North America' if region == 'Americas' else region
    demonym = DEMONYMS.get(code, about['demonym'].split(',')[0])
    values = {
      'continent': CONTINENTS.get(code, (region,)),
      'capital': CAPITALS.get(code, (about['capital'],)),
      'language': LANGUAGES.get(code) or _languages(code),
      'demonym': (demonym,),
    }
    name = SPELLED.get(code, about['name'])
    rows += [(name, relation, value) for relation, all_ in values.items() for value in all_]
  return rows


def _languages(code: str):
  """Official languages, in English, each once."""
  from babel import Locale, languages

  english = Locale('en').languages
  tags = languages.get_official_languages(code, de_facto=True)
  names = [english[tag.split('_')[0]] for tag in tags]
  return tuple(dict.fromkeys(LANGUAGE_NAMES.get(name, name) for name in names))


def elements():
  import periodictable

  kinds = {number: kind for kind, numbers in KINDS.items() for number in numbers}
  rows = []
  for element in (periodictable.elements[number] for number in range(1, 104)):
    state = 'gas' if element.number in GASES else 'solid'
    state = 'liquid' if element.number in LIQUIDS else state
    facts = {'symbol': element.symbol, 'kind': kinds[element.number], 'state': state}
    rows += [(element.name, relation, value) for relation, value in facts.items()]
  return rows


def main(argv):
  cli.no_arguments(argv)
  for name, rows in (('countries', countries()), ('elements', elements())):
    DATA.mkdir(exist_ok=True)
    with open(DATA / f'{name}.csv', 'w', newline='', encoding='utf-8') as file:
      writer = csv.writer(file, lineterminator='\n')
      writer.writerows([('subject', 'relation', 'attribute'), *rows])
    print(f'{DATA / name}.csv: {len({row[0] for row in rows})} subjects, {len(rows)} rows')


if __name__ == '__main__':
  cli.run(main)
