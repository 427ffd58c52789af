/** The page in Japanese. The keys are the English texts of the code. */
export default {};
